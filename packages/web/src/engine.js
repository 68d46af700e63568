/**
 * Calls the C library (engines/c/include/blip2rt.h) in WebAssembly: JavaScript's values in and out, its errors thrown.
 * Knows nothing of workers, pictures' formats and downloads.
 */

const KINDS = [
  "", "OptionError", "ImageError", "BundleError", "TimeoutError", "MemoryError", "BackendError",
]; // by blip2rt_status
const RGBA = 2;
const CACHED_IMAGES = 8;
const FOLDER = "/bundle";

/** An error of blip2rt. Its message says what is wrong and how to fix it; `name` is its kind, such as OptionError. */
export class Blip2rtError extends Error {
  /** @param {string} message @param {string} name */
  constructor(message, name) {
    super(message);
    this.name = name;
  }
}

/** {numBeams: 5, badWords: ["a", "b"]} -> [["num_beams", "5"], ["bad_words", "a"], ["bad_words", "b"]] */
export function optionPairs(options) {
  const snake = (name) => name.replace(/[A-Z]/g, (letter) => `_${letter.toLowerCase()}`);
  return Object.entries(options).filter(([, value]) => value !== undefined && value !== null).flatMap(
    ([name, value]) => [value].flat().map((each) => [snake(name), String(each)]));
}

/** The memory of one call: strings, lists and outputs, freed together. */
class Arena {
  constructor(module) {
    this.module = module;
    this.held = [];
  }

  bytes(size) {
    const at = this.module._malloc(size);
    if (!at) throw new Blip2rtError("WebAssembly has no memory left: close other tabs, or use a smaller picture", "MemoryError");
    this.held.push(at);
    return at;
  }

  output() {
    const at = this.bytes(8);
    this.view().setFloat64(at, 0, true);
    return at;
  }

  view() { return new DataView(this.module.wasmMemory.buffer); }
  pointer(at) { return this.view().getUint32(at, true); }
  number(at) { return this.view().getFloat64(at, true); }

  text(text) {
    if (text === undefined || text === null) return 0;
    const size = this.module.lengthBytesUTF8(text) + 1, at = this.bytes(size);
    this.module.stringToUTF8(text, at, size);
    return at;
  }

  list(texts) { // ends with NULL
    const addresses = texts.map((each) => this.text(each)), at = this.bytes(4 * (texts.length + 1)), view = this.view();
    [...addresses, 0].forEach((address, i) => view.setUint32(at + 4 * i, address, true));
    return at;
  }

  options(options) { return this.list(optionPairs(options).flat()); }
  free() { for (const at of this.held) this.module._free(at); }
}

export class Engine {
  /** @param {Function} create the factory of blip2rt.js @param {number} threads */
  static async start(create, threads) {
    const engine = new Engine();
    engine.threads = threads;
    engine.module = await create({threads, onPiece: (_user, piece) => engine.onPiece(piece)});
    return engine;
  }

  files = new Map(); // name -> {at, size}, of the bundle
  features = new Map(); // key of an image -> handle, the least recently used first
  chats = new Map(); // number -> handle
  onPiece = (_piece) => false; // of the running call: whether to end the text
  module;
  threads = 1;

  /** Make room for a file of the bundle, and return what writes bytes at an offset into it. */
  file(name, size) {
    const arena = new Arena(this.module);
    try {
      const at = this.module._web_file(arena.text(`${FOLDER}/${name}`), size);
      if (!at) throw new Blip2rtError(`no memory for ${name} (${megabytes(size)}): close other tabs, or use a smaller bundle`, "MemoryError");
      this.files.set(name, {at, size});
      return (bytes, offset) => new Uint8Array(this.module.wasmMemory.buffer, at + offset, bytes.length).set(bytes);
    } finally { arena.free(); }
  }

  /** Open the bundle, and return its manifest. */
  load(options) {
    this.model = this.#call("load", (c) => [c.text(FOLDER), c.options({threads: this.threads, ...options})], (c, out) => c.pointer(out));
    const {at, size} = this.files.get("blip2rt.json");
    return JSON.parse(new TextDecoder().decode(new Uint8Array(this.module.wasmMemory.buffer, at, size).slice()));
  }

  /** Encode a picture, or return what an earlier call encoded for its key. */
  encode({key, width, height, copyTo}) {
    let features = this.features.get(key);
    this.features.delete(key);
    if (!features) {
      const image = this.#call("image_pixels", (c) => {
        const at = c.bytes(width * height * 4);
        copyTo(new Uint8Array(this.module.wasmMemory.buffer, at, width * height * 4));
        return [this.model, at, width, height, 0, RGBA];
      }, (c, out) => c.pointer(out));
      try {
        features = this.#call("encode", () => [this.model, image], (c, out) => c.pointer(out));
      } finally { this.module._blip2rt_image_free(image); }
    }
    this.features.set(key, features);
    if (this.features.size > CACHED_IMAGES) {
      const [[oldest, handle]] = this.features;
      this.module._blip2rt_features_free(handle);
      this.features.delete(oldest);
    }
    return features;
  }

  has(key) { return this.features.has(key); }

  caption(features, prompt, options, scores) {
    return this.#texts("caption", (c) => [this.model, features, c.text(prompt), c.options(options)], scores && features);
  }

  ask(features, question, options) {
    return this.#texts("ask", (c) => [this.model, features, c.text(question), c.options(options)]);
  }

  chat(number, features, options) {
    this.chats.set(number, this.#call("chat_begin", (c) => [this.model, features, c.options(options)], (c, out) => c.pointer(out)));
  }

  chatAsk(number, question, options) {
    return this.#texts("chat_ask", (c) => [this.chats.get(number) ?? 0, c.text(question), c.options(options)]);
  }

  chatClose(number) {
    this.module._blip2rt_chat_free(this.chats.get(number) ?? 0);
    this.chats.delete(number);
  }

  match(features, text) {
    let outputs;
    return this.#call("match", (c) => [this.model, features, c.text(text), ...(outputs = [c.output(), c.output(), c.output()])], (c) => {
      const [score, probability, cosine] = outputs.map((at) => c.number(at));
      return {score, probability, cosine};
    }, true);
  }

  sees(features, statement) {
    return this.#call("sees", (c) => [this.model, features, c.text(statement)], (c, out) => c.number(out));
  }

  tag(features, labels, top, threshold) {
    return this.#texts("tag", (c) => [this.model, features, labels ? c.list(labels) : 0, top, threshold]).map(({text, score}) => {
      const parents = text.split("|");
      return {label: parents.pop(), probability: score, parents};
    });
  }

  /** Call a function that returns texts; with `rated`, features, also how probably each is a right caption. */
  #texts(name, build, rated) {
    const module = this.module, calls = name === "tag" ? [] : [module._web_callback(), 0];
    const texts = this.#call(name, (c) => [...build(c), ...calls], (c, out) => c.pointer(out));
    try {
      return Array.from({length: module._blip2rt_texts_count(texts)}, (_, i) => ({
        text: module.UTF8ToString(module._blip2rt_texts_get(texts, i)),
        score: module._blip2rt_texts_score(texts, i),
        truncated: Boolean(module._blip2rt_texts_truncated(texts, i)),
        ...(rated && {confidence: this.#confidence(rated, texts, i)}),
      }));
    } finally { module._blip2rt_texts_free(texts); }
  }

  /** How probably a caption is right; undefined without words. */
  #confidence(features, texts, index) {
    const found = this.#call("confidence", () => [this.model, features, texts, index], (c, out) => c.number(out));
    return Number.isNaN(found) ? undefined : found;
  }

  /** build(arena) -> arguments, before the output (left out with `plain`) and the error; read(arena, output) -> result. */
  #call(name, build, read, plain = false) {
    const module = this.module, arena = new Arena(module);
    try {
      const given = build(arena), out = arena.output(), error = arena.output();
      const status = module[`_blip2rt_${name}`](...given, ...(plain ? [] : [out]), error);
      if (!status) return read(arena, out);
      const handle = arena.pointer(error), message = module.UTF8ToString(module._blip2rt_error_message(handle));
      module._blip2rt_error_free(handle);
      throw new Blip2rtError(message, KINDS[status] ?? "BackendError");
    } finally { arena.free(); }
  }
}

export const megabytes = (bytes) => `${Math.ceil(bytes / 1e6).toLocaleString("en")} MB`;
