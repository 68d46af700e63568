/**
 * Keeps a bundle's pieces in the browser: in the Origin Private File System, or in the Cache API where that is missing.
 * Where neither works, as in some private windows, nothing is kept.
 */
import {megabytes} from "./engine.js";
import {sha256} from "./bundle.js";

/**
 * A store of the bundle at a URL.
 * onWarning(message): called once if a piece cannot be kept.
 */
export async function openStore(url, onWarning) {
  const name = `blip2rt ${await sha256(new TextEncoder().encode(url))}`;
  const lists = await globalThis.caches?.open("blip2rt lists").catch(() => null);
  const files = await openFolder(name) ?? await openCache(name);
  let warned = false;
  const warn = (message) => {
    if (!warned) onWarning(message);
    warned = true;
  };
  if (!files) warn("this browser keeps no files for this page, so every visit downloads the model again");
  return {
    list: () => lists?.match(url),
    keepList: (response) => lists?.put(url, response).catch(() => {}),
    get: (piece) => files?.read(piece).catch(() => null),
    keepOnly: async (pieces) => {
      for (const each of await files?.names() ?? []) if (!pieces.includes(each)) await files?.remove(each);
    },
    put: async (piece, bytes) => {
      if (!files) return;
      try {
        await files.write(piece, bytes);
      } catch (error) {
        await files.remove(piece).catch(() => {});
        warn(`the browser has no room for ${megabytes(bytes.length)} more, so the next visit downloads them again: ` +
          `free some disk space (${error.name})`);
      }
    },
  };
}

async function openFolder(name) {
  try {
    if (!("createWritable" in FileSystemFileHandle.prototype)) return null;
    const folder = await (await navigator.storage.getDirectory()).getDirectoryHandle(name, {create: true});
    return {
      read: async (piece) => new Uint8Array(await (await (await folder.getFileHandle(piece)).getFile()).arrayBuffer()),
      write: async (piece, bytes) => { // complete or not at all
        const file = await (await folder.getFileHandle(piece, {create: true})).createWritable();
        await file.write(bytes);
        await file.close();
      },
      names: () => collect(folder.keys()),
      remove: (piece) => folder.removeEntry(piece),
    };
  } catch { return null; }
}

async function openCache(name) {
  try {
    const cache = await caches.open(name), at = (piece) => new URL(piece, location.href).href;
    return {
      read: async (piece) => {
        const kept = await cache.match(at(piece));
        return kept ? new Uint8Array(await kept.arrayBuffer()) : null;
      },
      write: (piece, bytes) => cache.put(at(piece), new Response(bytes)),
      names: async () => (await cache.keys()).map(({url}) => url.split("/").pop()),
      remove: (piece) => cache.delete(at(piece)),
    };
  } catch { return null; }
}

async function collect(iterator) {
  const all = [];
  for await (const each of iterator) all.push(each);
  return all;
}
