// An encoder in the browser: what `matvit extract --format onnx` wrote, run by onnxruntime-web.

import * as ort from "./ort/ort.wasm.min.mjs";

ort.env.wasm.numThreads = 1; // more would want headers that keep a page to itself

const here = new URL("./", import.meta.url);
const TOLERANCE = { "model.int8.onnx": 0.01 }; // of the cosine; a saturating sum is off by more

/** Opens a graph, and lets it answer only if it computes here what it computed where it was made. */
export async function open(file) {
  const [described, golden] = await Promise.all([json("encoder.json"), json("golden.json")]);
  const wanted = described.files[file];
  if (!wanted) throw new Error(`${described.name} was written without ${file}`);
  const data = await (await fetched(`encoder/${file}`)).arrayBuffer();
  const session = await ort.InferenceSession.create(data, { executionProviders: ["wasm"] });
  const side = described.preprocess.image_size;
  const embed = async (pixels) => {
    const images = new ort.Tensor("uint8", pixels, [1, side, side, 3]);
    const [vectors] = Object.values(await session.run({ images }));
    return vectors.data;
  };
  const vector = await embed(Uint8Array.from(golden.image));
  const cosine = golden.vector.reduce((sum, value, at) => sum + value * vector[at], 0);
  if (!(Math.abs(cosine - wanted.cosine) <= (TOLERANCE[file] ?? 1e-4))) {
    throw new Error(
      `${file} computes wrongly in this browser: cosine ${cosine.toFixed(5)} to the golden ` +
        `vector, ${wanted.cosine.toFixed(5)} where it was written`,
    );
  }
  return { ...described, bytes: data.byteLength, cosine, embed };
}

/** Reads a picture as the encoder sees it: upright, in sRGB, transparency on white, resized. */
export async function look(blob, preprocess) {
  const bitmap = await createImageBitmap(blob, { imageOrientation: "from-image" });
  const { width, height } = bitmap;
  const canvas = new OffscreenCanvas(width, height);
  const context = canvas.getContext("2d", { colorSpace: "srgb", willReadFrequently: true });
  context.fillStyle = "white";
  context.fillRect(0, 0, width, height);
  context.drawImage(bitmap, 0, 0);
  bitmap.close();
  const { data } = context.getImageData(0, 0, width, height);
  return resize(data, width, height, preprocess);
}

/** Resizes RGBA as Pillow resizes RGB, antialiased: first each row, then each column, in bytes. */
export function resize(rgba, width, height, preprocess) {
  const side = preprocess.image_size;
  const [left, top, kept_width, kept_height] = keptBox(width, height, preprocess);
  const kernel = preprocess.interpolation === "bilinear" ? BILINEAR : BICUBIC;
  const across = weights(width, left, kept_width, side, kernel);
  const down = weights(height, top, kept_height, side, kernel);
  const rows = new Uint8ClampedArray(height * side * 3);
  for (let y = 0; y < height; y++) {
    for (let x = 0; x < side; x++) {
      const { first, shares } = across[x];
      for (let channel = 0; channel < 3; channel++) {
        let sum = 0;
        let from = 4 * (y * width + first) + channel;
        for (const share of shares) {
          sum += share * rgba[from];
          from += 4;
        }
        rows[3 * (y * side + x) + channel] = sum; // rounds, and stays within a byte
      }
    }
  }
  const pixels = new Uint8ClampedArray(side * side * 3);
  for (let y = 0; y < side; y++) {
    const { first, shares } = down[y];
    for (let x = 0; x < 3 * side; x++) {
      let sum = 0;
      let from = 3 * side * first + x;
      for (const share of shares) {
        sum += share * rows[from];
        from += 3 * side;
      }
      pixels[3 * side * y + x] = sum;
    }
  }
  return new Uint8Array(pixels.buffer);
}

/** What is kept of an image: `crop` its centre, `squash` all of it; less the border of crop_pct. */
function keptBox(width, height, { fit, crop_pct = 1 }) {
  const kept_width = crop_pct * width;
  const kept_height = crop_pct * height;
  const side = Math.min(kept_width, kept_height);
  const [across, down] = fit === "squash" ? [kept_width, kept_height] : [side, side];
  return [(width - across) / 2, (height - down) / 2, across, down];
}

const BICUBIC = {
  support: 2,
  at: (x) =>
    x < 1 ? (1.5 * x - 2.5) * x * x + 1 : x < 2 ? (((x - 5) * x + 8) * x - 4) * -0.5 : 0,
};
const BILINEAR = { support: 1, at: (x) => (x < 1 ? 1 - x : 0) };

/** Of each output pixel: from which input pixel on which shares are taken. */
function weights(length, start, kept, side, kernel) {
  const scale = kept / side;
  const wide = Math.max(scale, 1);
  const reach = kernel.support * wide;
  return Array.from({ length: side }, (_, at) => {
    const centre = start + (at + 0.5) * scale;
    const first = Math.max(0, Math.trunc(centre - reach + 0.5));
    const end = Math.min(length, Math.trunc(centre + reach + 0.5));
    const shares = Float64Array.from({ length: end - first }, (_, near) =>
      kernel.at(Math.abs((near + first - centre + 0.5) / wide)),
    );
    const sum = shares.reduce((all, share) => all + share, 0);
    return { first, shares: shares.map((share) => share / sum) };
  });
}

async function json(name) {
  return (await fetched(`encoder/${name}`)).json();
}

async function fetched(name) {
  const answer = await fetch(new URL(name, here));
  if (!answer.ok) throw new Error(`${name} is not there (${answer.status}); build the page again`);
  return answer;
}
