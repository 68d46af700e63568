/** The public objects of both entries, in the browser and in Node. They run in the page; the engine is in a worker. */
import {Blip2rtError} from "./engine.js";

/**
 * How texts are generated; those of Hugging Face's `generate`, as in Python. Unset ones come from the bundle.
 * @typedef {object} Options
 * @property {number} [numCaptions] texts to return, as a list if above 1
 * @property {number} [numBeams]
 * @property {number} [maxNewTokens]
 * @property {number} [minNewTokens]
 * @property {number} [lengthPenalty]
 * @property {boolean | "never"} [earlyStopping]
 * @property {number} [repetitionPenalty]
 * @property {number} [noRepeatNgramSize]
 * @property {string[]} [badWords]
 * @property {string} [forcedPrefix]
 * @property {string[]} [stopStrings]
 * @property {number} [maxTime] seconds
 * @property {boolean} [doSample]
 * @property {number} [temperature]
 * @property {number} [topK]
 * @property {number} [topP]
 * @property {number} [minP]
 * @property {number} [seed]
 *
 * @typedef {object} Call
 * @property {AbortSignal} [signal] ends the call, which rejects with the signal's reason
 * @property {(piece: string) => void} [onToken] receives the text piece by piece; with beams, there are no pieces
 *
 * @typedef {object} CaptionOnly
 * @property {string} [prompt] text that the caption continues
 * @property {boolean} [scores] also compute the confidence
 * @property {boolean} [raw] keep line breaks
 * @property {false} [pool] leave out the bundle's pool of captions
 *
 * @typedef {Options & Call} AskOptions
 * @typedef {Options & Call & CaptionOnly} CaptionOptions
 *
 * @typedef {{data: Uint8Array | Uint8ClampedArray, width: number, height: number}} Pixels RGBA
 * @typedef {Blob | ImageBitmap | ImageData | HTMLImageElement | SVGImageElement | HTMLCanvasElement | OffscreenCanvas |
 *   HTMLVideoElement | VideoFrame | Pixels} ImageLike In Node, only Pixels. A Blob or ImageBitmap is encoded once for
 *   any number of calls.
 *
 * @typedef {{score: number, probability: number, cosine: number}} Match
 * @typedef {{label: string, probability: number, parents: string[]}} Tag
 * @typedef {{loaded: number, total: number}} Progress bytes
 *
 * @typedef {object} LoadOptions
 * @property {number} [threads] default: the processor's, at most 4; always 1 where the page is not cross-origin isolated
 * @property {AbortSignal} [signal]
 * @property {(progress: Progress) => void} [onProgress]
 * @property {(message: string) => void} [onWarning] called if the browser cannot keep the model for the next visit
 * @property {boolean} [specialTokens]
 * @property {boolean} [verify]
 * @property {boolean} [trustedGraphs]
 */

/** A generated text. It converts to a string: `img.alt = caption` works. */
export class GeneratedText {
  /** @param {{text: string, score: number, truncated: boolean, confidence?: number}} fields */
  constructor({text, score, truncated, confidence}) {
    this.text = text;
    /** Sum of the tokens' log-probabilities over length^lengthPenalty. */
    this.score = score;
    /** Whether maxNewTokens or maxTime ended the text, not the model. */
    this.truncated = truncated;
    /** Probability that the caption is right, if `scores` was set. */
    this.confidence = confidence;
  }

  toString() { return this.text; }
}

/** {data, width, height} as it is sent to a worker, checked; null if an image is none. @param {any} image */
export function pixelsOf(image) {
  const {data, width, height} = image ?? {};
  if (data?.length === undefined || !width || !height) return null;
  if (data.length === 4 * width * height) return {data, width, height};
  throw new Blip2rtError(`data has ${data.length} values: give ${4 * width * height}, RGBA for ${width} x ${height} pixels`, "ImageError");
}

/** Sends requests to the worker and hands out what it answers. */
class Channel {
  #last = 0;
  #waiting = new Map();

  /** connection: {post(message, transfer), listen(onMessage, onFault), end(), cancellation(): {flag, cancel(), free()}} */
  constructor(connection) {
    this.connection = connection;
    connection.listen((message) => this.#take(message), (error) => this.#fail(error));
  }

  call(method, args, /** @type {Call & LoadOptions} */ {signal, onToken, onProgress, onWarning} = {}, transfer = []) {
    return new Promise((done, fail) => {
      if (this.closed) return fail(this.closed);
      if (signal?.aborted) return fail(signal.reason);
      const id = this.#last += 1, {flag, cancel, free} = this.connection.cancellation();
      const onAbort = () => {
        cancel();
        if (method === "load") this.connection.post({abortLoading: true});
        end();
        fail(signal?.reason);
      };
      const end = () => {
        signal?.removeEventListener("abort", onAbort);
        this.#waiting.delete(id);
        free();
      };
      signal?.addEventListener("abort", onAbort);
      this.#waiting.set(id, {done, fail, end, onToken, onProgress, onWarning});
      this.connection.post({id, method, args, cancel: flag}, transfer);
    });
  }

  #take({id, result, error, piece, progress, warning}) {
    const request = this.#waiting.get(id);
    if (!request) return; // cancelled
    if (piece !== undefined) return request.onToken?.(piece);
    if (progress) return request.onProgress?.(progress);
    if (warning) return request.onWarning?.(warning);
    request.end();
    if (error) request.fail(new Blip2rtError(error.message, error.name));
    else request.done(result);
  }

  #fail(error) {
    this.closed = error;
    for (const {fail, end} of [...this.#waiting.values()]) { end(); fail(error); }
  }

  close() {
    this.#fail(new Blip2rtError("the model is closed: load it again", "BackendError"));
    this.connection.end();
  }
}

/** Separate what a call itself takes from the options that the engine reads. */
function split(/** @type {CaptionOptions} */ given = {}) {
  const {signal, onToken, prompt, scores, ...options} = given;
  return {call: {signal, onToken}, prompt, scores, options};
}

const shaped = (texts, /** @type {Options} */ {numCaptions = 1}) =>
  numCaptions > 1 ? texts.map((each) => new GeneratedText(each)) : new GeneratedText(texts[0]);

/** A loaded bundle; `load` returns it. Images are encoded, and texts generated, one call after the other. */
export class Model {
  #channel;
  #keys = new WeakMap();
  #lastKey = 0;
  #sendable;
  #chats = 0;

  /** @hideconstructor */
  constructor(channel, sendable, manifest) {
    this.#channel = channel;
    this.#sendable = sendable;
    /** The bundle's blip2rt.json. @type {Record<string, any>} */
    this.manifest = manifest;
  }

  async #call(method, image, args, call) {
    call?.signal?.throwIfAborted();
    const [sent, transfer] = await this.#sendable(image);
    return this.#channel.call(method, {...args, image: {key: this.#key(image), image: sent}}, call, transfer);
  }

  /** The same for the same Blob or ImageBitmap, whose pixels do not change. */
  #key(image) {
    const next = () => this.#lastKey += 1;
    const fixed = [globalThis.Blob, globalThis.ImageBitmap].some((kind) => kind && image instanceof kind);
    if (!fixed) return next();
    if (!this.#keys.has(image)) this.#keys.set(image, next());
    return this.#keys.get(image);
  }

  /**
   * Image -> caption, or a list of captions if numCaptions is above 1.
   * @template {CaptionOptions} O
   * @param {ImageLike} image @param {O} [options]
   * @returns {Promise<O extends {numCaptions: 1} ? GeneratedText : O extends {numCaptions: number} ? GeneratedText[] : GeneratedText>}
   */
  async caption(image, options) {
    const {call, ...args} = split(options);
    return /** @type {any} */ (shaped(await this.#call("caption", image, args, call), args.options));
  }

  /**
   * Image and question -> answer, or a list of answers if numCaptions is above 1.
   * @template {AskOptions} O
   * @param {ImageLike} image @param {string} question @param {O} [options]
   * @returns {Promise<O extends {numCaptions: 1} ? GeneratedText : O extends {numCaptions: number} ? GeneratedText[] : GeneratedText>}
   */
  async ask(image, question, options) {
    const {call, ...args} = split(options);
    return /** @type {any} */ (shaped(await this.#call("ask", image, {...args, question}, call), args.options));
  }

  /**
   * Begin a conversation about an image, in which a question costs only its own tokens.
   * @param {ImageLike} image @param {Options & {signal?: AbortSignal}} [options] every question's defaults
   */
  async chat(image, options) {
    const {call, ...args} = split(options), number = this.#chats += 1;
    await this.#call("chat", image, {...args, number}, call);
    return new Chat(this.#channel, number);
  }

  /**
   * How well a text, or each of several, describes an image.
   * @template {string | string[]} T
   * @param {ImageLike} image @param {T} texts @param {{signal?: AbortSignal}} [call]
   * @returns {Promise<T extends string ? Match : Match[]>}
   */
  async match(image, texts, call) {
    const found = await this.#call("match", image, {texts: [texts].flat()}, call);
    return /** @type {any} */ (Array.isArray(texts) ? found : found[0]);
  }

  /**
   * Whether a statement is true of an image: a phrase ("a dog"), a sentence, or a question whether something is there.
   * @param {ImageLike} image @param {string} statement
   * @param {{threshold?: number, signal?: AbortSignal}} [options] threshold: 0.5 by default
   */
  async sees(image, statement, {threshold = 0.5, signal} = {}) {
    return await this.#call("sees", image, {statement}, {signal}) > threshold;
  }

  /**
   * Image -> labels that it shows, likeliest first.
   * @param {ImageLike} image
   * @param {{labels?: string[], top?: number, threshold?: number, signal?: AbortSignal}} [options] labels: texts such as
   *   "dog" or "animal|dog", by default about 1,200 everyday ones; top: 10 by default; threshold: 0.3 by default
   * @returns {Promise<Tag[]>}
   */
  async tag(image, {labels, top = 10, threshold = 0.3, signal} = {}) {
    return this.#call("tag", image, {labels, top, threshold}, {signal});
  }

  /** Free the model's memory. Running and later calls reject. */
  close() { this.#channel.close(); }
}

/** A conversation about an image. */
export class Chat {
  #channel;
  #number;

  /** @hideconstructor */
  constructor(channel, number) {
    this.#channel = channel;
    this.#number = number;
  }

  /** @param {string} question @param {AskOptions} [options] @returns {Promise<GeneratedText>} */
  async ask(question, options) {
    const {call, ...args} = split(options);
    return new GeneratedText((await this.#channel.call("chatAsk", {...args, question, number: this.#number}, call))[0]);
  }

  /** Free the conversation's memory. */
  async close() { await this.#channel.call("chatClose", {number: this.#number}); }
}

/** Connect to a worker and load a bundle. sendable(image) -> [what a worker takes, what is transferred]. */
export async function loadModel(connection, sendable, args, /** @type {LoadOptions} */ given) {
  const {signal, onProgress, onWarning, threads: _, ...options} = given;
  const channel = new Channel(connection);
  try {
    return new Model(channel, sendable, await channel.call("load", {...args, options}, {signal, onProgress, onWarning}));
  } catch (error) {
    channel.close();
    throw error;
  }
}
