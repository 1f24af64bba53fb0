// An image pasted or dropped anywhere on the page goes the way of an upload, with all its checks.
if (!window.matvitPaste) {
  window.matvitPaste = true;
  const take = (event, data) => {
    const input = document.querySelector('[data-testid="stFileUploader"] input[type="file"]');
    if (event.defaultPrevented || !data || !data.files.length || !input) return;
    event.preventDefault();
    const one = new DataTransfer();
    one.items.add(data.files[0]);
    input.files = one.files;
    input.dispatchEvent(new Event("change", { bubbles: true }));
  };
  document.addEventListener("paste", (event) => take(event, event.clipboardData));
  document.addEventListener("drop", (event) => take(event, event.dataTransfer));
  document.addEventListener("dragover", (event) => {
    if (event.dataTransfer && event.dataTransfer.types.includes("Files")) event.preventDefault();
  });

  // Hits and their buttons are plain HTML, which costs the server next to nothing: what they say
  // goes through a text input that nobody sees.
  const setValue = Object.getOwnPropertyDescriptor(HTMLInputElement.prototype, "value").set;
  const say = (said) => {
    const input = document.querySelector(".st-key-unseen-said input");
    if (!input || !said) return;
    setValue.call(input, said);
    input.dispatchEvent(new Event("input", { bubbles: true }));
    input.dispatchEvent(new FocusEvent("focusout", { bubbles: true }));
  };
  document.addEventListener("click", (event) => {
    const button = event.target.closest && event.target.closest("[data-say]");
    if (button) say(button.dataset.say);
  });

  // An answer replaces the hits of the last one: the focus stays where it was.
  let place = null;
  const note = (event) => {
    const hit = event.target.closest && event.target.closest(".mv-hit");
    place = hit ? hit.dataset.place : null;
  };
  document.addEventListener("focusin", note);
  document.addEventListener("pointerdown", note);
  new MutationObserver(() => {
    if (!place || document.activeElement !== document.body) return;
    const again = document.querySelector(`.mv-hit[data-place="${place}"] .mv-ask`);
    if (again) again.focus({ preventScroll: true });
  }).observe(document.body, { childList: true, subtree: true });

  // The keyboard: arrows over the hits, of which Enter asks with one because it is a button.
  const hits = () => [...document.querySelectorAll(".mv-ask")]
    .filter((each) => each.checkVisibility());
  const middle = (each) => {
    const box = each.getBoundingClientRect();
    return [box.left + box.width / 2, box.top + box.height / 2];
  };
  const go = (key) => {
    const all = hits();
    const here = all.indexOf(document.activeElement);
    if (here < 0) return all.length ? all[0] : null;
    if (key === "ArrowRight") return all[here + 1];
    if (key === "ArrowLeft") return all[here - 1];
    const [x, y] = middle(all[here]);
    const down = key === "ArrowDown" ? 1 : -1;
    const rows = all.filter((each) => down * (middle(each)[1] - y) > 20);
    const far = (each) => 4 * Math.abs(middle(each)[1] - y) + Math.abs(middle(each)[0] - x);
    return rows.sort((a, b) => far(a) - far(b))[0];
  };
  const keys = [
    ["\u2190 \u2191 \u2192 \u2193", "go over the hits"],
    ["Enter", "ask with the hit"],
    ["+ \u2212", "more like the hit, or less"],
    ["1 2 3 4", "switch S, M, L, XL on and off"],
    ["/", "go to the upload, which Enter opens"],
    ["?", "this help"],
  ];
  const help = () => {
    const open = document.querySelector("dialog.mv-help");
    if (open) { open.close(); return; }
    const dialog = document.createElement("dialog");
    dialog.className = "mv-help";
    dialog.setAttribute("aria-label", "Keys");
    const list = dialog.appendChild(document.createElement("dl"));
    for (const [key, what] of keys) {
      list.appendChild(document.createElement("dt")).textContent = key;
      list.appendChild(document.createElement("dd")).textContent = what;
    }
    dialog.addEventListener("close", () => dialog.remove());
    dialog.addEventListener("click", () => dialog.close());
    (document.querySelector(".stApp") || document.body).appendChild(dialog);
    dialog.showModal();
  };
  const press = (event) => {
    const hit = document.activeElement && document.activeElement.closest(".mv-hit");
    if (event.key.startsWith("Arrow")) {
      const next = go(event.key);
      if (next) { next.focus(); next.scrollIntoView({ block: "nearest" }); }
      return Boolean(next);
    }
    if ((event.key === "+" || event.key === "-") && hit) {
      const sign = hit.querySelector(`.mv-sign[data-say^="${event.key}"]`);
      if (sign) say(sign.dataset.say);
      return Boolean(sign);
    }
    if (/^[1-4]$/.test(event.key)) {
      const pill = document.querySelectorAll(".st-key-sizes button")[Number(event.key) - 1];
      if (pill) pill.click();
      return Boolean(pill);
    }
    if (event.key === "/") {
      const button = document.querySelector('[data-testid="stFileUploader"] button');
      if (button) { button.focus(); button.scrollIntoView({ block: "nearest" }); }
      return Boolean(button);
    }
    if (event.key === "?") { help(); return true; }
    return false;
  };
  const TYPED = "input, textarea, select, [contenteditable], [role=slider], [role=combobox], "
    + "[role=tab], [role=listbox], [role=radiogroup]";
  document.addEventListener("keydown", (event) => {
    if (event.defaultPrevented || event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.target.closest && event.target.closest(TYPED)) return;
    if (press(event)) event.preventDefault();
  });
}
