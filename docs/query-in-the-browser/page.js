// The page: a picture in, its vector to the server, the hits out. The picture stays here.

import { look, open } from "./encoder.js";

const at = (id) => document.getElementById(id);
const server = new URL("../", location.href); // `matvit serve --page` serves this folder at /page/
let encoder = null;
let asked = 0;

/** Opens the graph that is chosen; until it has found its golden vector, nothing can be asked. */
async function choose() {
  const file = document.querySelector("input[name=graph]:checked").value;
  allow(false);
  say(`Loading ${file} …`);
  try {
    encoder = await open(file);
    const megabytes = (encoder.bytes / 1e6).toFixed(1);
    say(
      `${encoder.name}, ${encoder.submodel}, ${megabytes} MB, runs in this browser and finds its ` +
        `golden vector (cosine ${encoder.cosine.toFixed(5)}).`,
    );
    allow(true);
  } catch (error) {
    encoder = null;
    say(error.message, true);
  }
}

/** Asks with a picture, and shows what is found unless something else was asked meanwhile. */
async function ask(picture) {
  if (!encoder || !picture) return;
  const turn = ++asked;
  at("query").src = URL.createObjectURL(picture);
  at("hits").replaceChildren();
  try {
    const start = performance.now();
    const pixels = await look(picture, encoder.preprocess);
    const seen = performance.now();
    const vector = Array.from(await encoder.embed(pixels));
    const embedded = performance.now();
    const body = JSON.stringify({ vector, fingerprint: encoder.fingerprint });
    const found = await (await call("search?k=10", { method: "POST", body })).json();
    if (turn !== asked) return;
    say(
      `Decoded in ${(seen - start).toFixed(0)} ms and encoded in ` +
        `${(embedded - seen).toFixed(0)} ms here; ${kilobytes(body.length)} sent, where the ` +
        `picture has ${kilobytes(picture.size)}; searched in ${found.search_ms.toFixed(1)} ms.`,
    );
    await Promise.all(found.hits.map((hit) => show(hit, turn)));
  } catch (error) {
    if (turn === asked) say(error.message, true);
  }
}

async function show(hit, turn) {
  const figure = document.createElement("figure");
  const caption = document.createElement("figcaption");
  caption.textContent = `${hit.score.toFixed(3)}  ${hit.path}`;
  figure.append(caption);
  at("hits").append(figure);
  const picture = await (await call(`images/${hit.id}`)).blob();
  if (turn !== asked) return;
  const image = new Image();
  image.alt = hit.path;
  image.src = URL.createObjectURL(picture);
  image.onload = () => URL.revokeObjectURL(image.src);
  figure.prepend(image);
}

async function call(path, options = {}) {
  const token = at("token").value;
  const headers = { "Content-Type": "application/json" };
  if (token) headers.Authorization = `Bearer ${token}`;
  const answer = await fetch(new URL(path, server), { ...options, headers });
  if (answer.ok) return answer;
  const said = await answer.json().catch(() => ({ detail: answer.statusText }));
  if (answer.status === 401) at("token").parentElement.hidden = false;
  throw new Error(`The server said: ${said.detail}`);
}

function say(text, wrong = false) {
  at("said").textContent = text;
  at("said").classList.toggle("wrong", wrong);
}

function allow(ready) {
  at("file").disabled = !ready;
  at("drop").classList.toggle("ready", ready);
}

const kilobytes = (bytes) => `${(bytes / 1000).toFixed(1)} kB`;

for (const radio of document.querySelectorAll("input[name=graph]")) radio.onchange = choose;
at("file").onchange = () => ask(at("file").files[0]);
document.ondragover = (event) => event.preventDefault();
document.ondrop = (event) => {
  event.preventDefault();
  ask(event.dataTransfer.files[0]);
};
document.onpaste = (event) => ask(event.clipboardData.files[0]);
choose();
