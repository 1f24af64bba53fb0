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
}
