/** The browser's worker: runs the engine, downloads bundles and decodes pictures. */
import {bringPieces, checkMemory, fetchList} from "./bundle.js";
import {Blip2rtError} from "./engine.js";
import {requests} from "./requests.js";
import {openStore} from "./storage.js";

const STRIP_ROWS = 256;

async function create(Engine, threads) {
  const {default: factory} = threads > 1 ? await import("../wasm/blip2rt-threads.js") : await import("../wasm/blip2rt.js");
  return Engine.start(factory, threads);
}

async function bring(url, start, {deviceMemory, signal, onProgress, onWarning}) {
  const store = await openStore(url, onWarning), list = await fetchList(url, store, signal);
  checkMemory(list, deviceMemory);
  const engine = await start();
  return bringPieces(list, url, engine, {store, signal, onProgress});
}

/** Any image that index.js sends -> its size, and what copies its RGBA values, with transparent parts on white. */
async function pixels(image) {
  if (image.data) return {width: image.width, height: image.height, copyTo: (memory) => memory.set(image.data)};
  const bitmap = image instanceof Blob ? await decoded(image) : image, {width, height} = bitmap;
  const canvas = new OffscreenCanvas(width, Math.min(height, STRIP_ROWS));
  const pen = canvas.getContext("2d", {willReadFrequently: true});
  const copyTo = (memory) => { // in strips: a large picture takes no second memory
    for (let row = 0; row < height; row += canvas.height) {
      pen.fillStyle = "white";
      pen.fillRect(0, 0, width, canvas.height);
      pen.drawImage(bitmap, 0, -row);
      memory.set(pen.getImageData(0, 0, width, Math.min(canvas.height, height - row)).data, 4 * width * row);
    }
    bitmap.close();
  };
  return {width, height, copyTo};
}

function decoded(blob) {
  return createImageBitmap(blob, {colorSpaceConversion: "none"}).catch(() => {
    throw new Blip2rtError("the browser cannot decode this picture: give a JPEG, PNG or WebP that is whole", "ImageError");
  });
}

function isCancelled(flag) {
  if (typeof flag !== "string") return Atomics.load(flag, 0) !== 0;
  const asked = new XMLHttpRequest();
  asked.open("GET", flag, false);
  try { asked.send(); } catch { return true; } // its URL was revoked
  return false;
}

const take = requests(postMessage, {create, bring, pixels, isCancelled});
addEventListener("message", ({data}) => take(data));
