/**
 * Brings a bundle into the engine's memory, piece by piece. Each piece is verified before it is used.
 *
 * A list, pieces.json, describes the bundle: {"format": "blip2rt-pieces", "name", "pieces": [{"sha256", "bytes"}],
 * "files": [{"name", "bytes"}]}. The pieces, whose files are SHA256.bin beside the list, are the files one after the other.
 */
import {Blip2rtError, megabytes} from "./engine.js";

const TRIES = 5;
const STALLED_SECONDS = 30;
const MAX_MEMORY = 2 ** 31; // of the engine
const WORKING_MEMORY = 128e6; // beside the weights

const fault = (message) => new Blip2rtError(message, "BundleError");
const wait = (seconds) => new Promise((done) => setTimeout(done, 1000 * seconds));
const isCount = (value) => Number.isSafeInteger(value) && value >= 0;
const sum = (parts) => parts.reduce((all, {bytes}) => all + bytes, 0);

export async function sha256(bytes) {
  const hash = await crypto.subtle.digest("SHA-256", bytes);
  return Array.from(new Uint8Array(hash), (byte) => byte.toString(16).padStart(2, "0")).join("");
}

/** The list at a URL, checked: it may be a stranger's. */
export async function fetchList(url, store, signal) {
  let response;
  try {
    response = await fetch(url, {signal, cache: "no-cache"});
    if (response.ok) await store?.keepList(response.clone());
  } catch (error) {
    signal?.throwIfAborted();
    response = await store?.list(); // offline
    if (!response) throw fault(`${url} does not arrive: connect to the network once (${error.message})`);
  }
  if (!response.ok) throw fault(`${url} answers ${response.status}: give the URL of a pieces.json that blip2rt-web wrote`);
  return checkedList(await response.json().catch(() => null), url);
}

export function checkedList(list, url) {
  const good = list?.format === "blip2rt-pieces" && Array.isArray(list.pieces) && Array.isArray(list.files) &&
    list.pieces.every(({sha256, bytes}) => /^[0-9a-f]{64}$/.test(sha256) && isCount(bytes)) &&
    list.files.every(({name, bytes}) => /^[\w-][\w.-]*$/.test(name) && isCount(bytes)) &&
    sum(list.pieces) === sum(list.files);
  if (!good) throw fault(`${url} is no list of a bundle's pieces: write one with blip2rt-web`);
  return {...list, bytes: sum(list.files)};
}

/** Throw if the bundle does not fit. deviceMemory: GiB, as browsers round it; unknown in some. */
export function checkMemory({name, bytes}, deviceMemory) {
  const needed = bytes + WORKING_MEMORY, room = Math.min(MAX_MEMORY, deviceMemory ? deviceMemory * 2 ** 29 : Infinity);
  if (needed > room) {
    throw new Blip2rtError(`${name} needs ${megabytes(needed)} of memory, and a page may use ${megabytes(room)} here: ` +
      "choose a smaller bundle, or a device with more memory", "MemoryError");
  }
}

/**
 * Write a bundle's files into the engine, from the store or from the network.
 * onProgress({loaded, total}) counts bytes; store: see storage.js, or null.
 */
export async function bringPieces(list, url, engine, {store, signal, onProgress}) {
  const writers = list.files.map(({name, bytes}) => ({bytes, write: engine.file(name, bytes)}));
  let start = 0; // of the piece within all files
  for (const piece of list.pieces) {
    signal?.throwIfAborted();
    const progress = (bytes) => onProgress?.({loaded: start + bytes, total: list.bytes});
    const bytes = await onePiece(piece, url, store, signal, progress);
    spread(bytes, start, writers);
    /** @type {any} */ (bytes.buffer).transfer?.(0); // frees it now: Firefox collects 160 MB of them late
    start += piece.bytes;
    progress(0);
  }
  await store?.keepOnly(list.pieces.map(({sha256}) => sha256));
}

function spread(bytes, start, writers) {
  let fileStart = 0;
  for (const {bytes: size, write} of writers) {
    const from = Math.max(start, fileStart), to = Math.min(start + bytes.length, fileStart + size);
    if (from < to) write(bytes.subarray(from - start, to - start), from - fileStart);
    fileStart += size;
  }
}

/** One tab downloads a piece; others wait, and find it in the store. */
function onePiece(piece, url, store, signal, progress) {
  const bring = async () => {
    const kept = await store?.get(piece.sha256);
    if (kept && await sha256(kept) === piece.sha256) return kept;
    const bytes = await download(piece, new URL(`${piece.sha256}.bin`, url), signal, progress);
    await store?.put(piece.sha256, bytes);
    return bytes;
  };
  return store && globalThis.navigator?.locks ? navigator.locks.request(`blip2rt ${piece.sha256}`, {signal}, bring) : bring();
}

/** Download a piece, and again after a fault. What other pieces have brought is not lost. */
async function download(piece, url, signal, progress) {
  for (let tried = 1; ; tried += 1) {
    try {
      const bytes = await receive(piece, url, signal, progress);
      if (await sha256(bytes) === piece.sha256) return bytes;
      throw fault("it is damaged");
    } catch (error) {
      signal?.throwIfAborted();
      if (tried === TRIES) {
        throw fault(`a piece of the model does not arrive (${error.message}, ${url}): load again, which resumes after the pieces that did`);
      }
      await wait(2 ** tried / 4);
    }
  }
}

async function receive({bytes: size}, url, signal, progress) {
  const stalled = new AbortController();
  let timer;
  const restart = () => {
    clearTimeout(timer);
    timer = setTimeout(() => stalled.abort(new Error(`nothing came for ${STALLED_SECONDS} seconds`)), 1000 * STALLED_SECONDS);
  };
  restart();
  try {
    const response = await fetch(url, {signal: AbortSignal.any([stalled.signal, ...(signal ? [signal] : [])]), cache: "no-store"});
    if (!response.ok) throw fault(`the server answers ${response.status}`);
    const bytes = new Uint8Array(size);
    let at = 0;
    for (const reader = /** @type {ReadableStream} */ (response.body).getReader(); ;) {
      const {value, done} = await reader.read();
      if (done) break;
      if (at + value.length > size) throw fault("it is too long");
      bytes.set(value, at);
      progress(at += value.length);
      restart();
    }
    if (at < size) throw fault("it is cut off");
    return bytes;
  } finally { clearTimeout(timer); }
}
