/**
 * blip2rt in the browser: `const model = await load("nano/pieces.json"); await model.caption(image)`.
 */
import {Blip2rtError} from "./engine.js";
import {Chat, GeneratedText, Model, loadModel, pixelsOf} from "./model.js";

export {Blip2rtError, Chat, GeneratedText, Model};

const MAX_THREADS = 4;

/**
 * Load a bundle: from the browser's storage, or else from the network. The engine runs in a worker.
 * @param {string | URL} url of a pieces.json that the command blip2rt-web wrote
 * @param {import("./model.js").LoadOptions} [options]
 * @returns {Promise<Model>}
 */
export async function load(url, options = {}) {
  const worker = new Worker(new URL("./worker.js", import.meta.url), {type: "module", name: "blip2rt"});
  const args = {
    source: new URL(url, document.baseURI).href,
    threads: crossOriginIsolated ? options.threads ?? Math.min(MAX_THREADS, navigator.hardwareConcurrency) : 1,
    deviceMemory: /** @type {any} */ (navigator).deviceMemory,
  };
  return loadModel(connect(worker), sendable, args, options);
}

function connect(worker) {
  return {
    post: (message, transfer) => worker.postMessage(message, transfer),
    listen: (onMessage, onFault) => {
      worker.onmessage = ({data}) => onMessage(data);
      worker.onerror = ({message}) => onFault(new Blip2rtError(`the worker ended (${message ?? "it could not start"}): reload the page`, "BackendError"));
    },
    end: () => worker.terminate(),
    cancellation,
  };
}

/** What tells a busy worker to stop: shared memory, or without it the URL of a blob, which the worker opens until it is revoked. */
function cancellation() {
  if (crossOriginIsolated) {
    const flag = new Int32Array(new SharedArrayBuffer(4));
    return {flag, cancel: () => Atomics.store(flag, 0, 1), free: () => {}};
  }
  const flag = URL.createObjectURL(new Blob([" "])), revoke = () => URL.revokeObjectURL(flag);
  return {flag, cancel: revoke, free: revoke};
}

async function sendable(image) {
  if (image instanceof Blob) return [image, []];
  const pixels = pixelsOf(image);
  if (pixels) return [pixels, []];
  try {
    if (image instanceof HTMLImageElement) await image.decode();
    const bitmap = await createImageBitmap(image, {colorSpaceConversion: "none"});
    return [bitmap, [bitmap]];
  } catch (error) {
    throw new Blip2rtError(`this is no picture that the browser can read (${error.message}): give a Blob, an element, ` +
      "an ImageBitmap, or {data, width, height}", "ImageError");
  }
}
