/** blip2rt in Node 20 and later: `load("my-bundle")` opens a folder, `load("https://.../pieces.json")` downloads. */
import {Worker} from "node:worker_threads";
import {Blip2rtError} from "./engine.js";
import {Chat, GeneratedText, Model, loadModel, pixelsOf} from "./model.js";

export {Blip2rtError, Chat, GeneratedText, Model};

/**
 * Load a bundle. The engine runs in a worker, on one thread.
 * @param {string | URL} source a bundle's folder, or the URL of a pieces.json
 * @param {import("./model.js").LoadOptions} [options]
 * @returns {Promise<Model>}
 */
export async function load(source, options = {}) {
  const worker = new Worker(new URL("./node_worker.js", import.meta.url));
  const connection = {
    post: (message) => worker.postMessage(message),
    listen: (onMessage, onFault) => {
      worker.on("message", onMessage);
      worker.on("error", (error) => onFault(new Blip2rtError(`the worker ended: ${error.message}`, "BackendError")));
    },
    end: () => worker.terminate(),
    cancellation: () => {
      const flag = new Int32Array(new SharedArrayBuffer(4));
      return {flag, cancel: () => Atomics.store(flag, 0, 1), free: () => {}};
    },
  };
  return loadModel(connection, sendable, {source: String(source), threads: 1}, options);
}

async function sendable(image) {
  const pixels = pixelsOf(image);
  if (!pixels) {
    throw new Blip2rtError("Node decodes no pictures: give {data, width, height} with RGBA values, as the package sharp returns them", "ImageError");
  }
  return [pixels, []];
}
