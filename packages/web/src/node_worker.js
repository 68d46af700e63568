/** Node's worker: runs the engine on bundles of the disk, or of the network. */
import {readFile, readdir} from "node:fs/promises";
import {fileURLToPath} from "node:url";
import {join} from "node:path";
import {parentPort} from "node:worker_threads";
import factory from "../wasm/blip2rt.js";
import {bringPieces, fetchList} from "./bundle.js";
import {Blip2rtError} from "./engine.js";
import {requests} from "./requests.js";

async function bring(source, start, settings) {
  if (/^https?:/.test(source)) return bringPieces(await fetchList(source, null, settings.signal), source, await start(), settings);
  const folder = source.startsWith("file:") ? fileURLToPath(source) : source, engine = await start();
  const entries = await readdir(folder, {withFileTypes: true}).catch((error) => {
    throw new Blip2rtError(`${folder} cannot be read (${error.code}): give a bundle's folder`, "BundleError");
  });
  for (const {name} of entries.filter((entry) => entry.isFile())) {
    const bytes = await readFile(join(folder, name));
    engine.file(name, bytes.length)(bytes, 0);
  }
}

const take = requests((message) => parentPort.postMessage(message), {
  create: (Engine) => Engine.start(factory, 1),
  bring,
  pixels: ({data, width, height}) => ({width, height, copyTo: (memory) => memory.set(data)}),
  isCancelled: (flag) => Atomics.load(flag, 0) !== 0,
});
parentPort.on("message", take);
