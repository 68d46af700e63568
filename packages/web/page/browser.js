// Where captions and answers of the static page come from: a model in a worker. server.js has the same methods.
import {load} from "./blip2rt-web/src/index.js";

const MAX_CHATS = 3; // open at once: each reserves 140 MB for nano
const $ = (id) => document.getElementById(id);
const inCamel = (options) => Object.fromEntries(Object.entries(options).map(
  ([name, value]) => [name.replace(/_./g, (letters) => letters[1].toUpperCase()), value]));
const sampled = (options) => options.temperature > 0.1 ? {doSample: true, numBeams: 1, noRepeatNgramSize: 4, ...options} : options;

/** Keep the page for visits without a network, and reload it once where that gives it threads. */
async function keepPage() {
  const workers = navigator.serviceWorker;
  if (!workers) return;
  await workers.register("sw.js").catch(() => {});
  if (crossOriginIsolated || sessionStorage.getItem("reloaded")) return;
  if (!workers.controller) await new Promise((done) => { workers.addEventListener("controllerchange", done); setTimeout(done, 5000); });
  sessionStorage.setItem("reloaded", "yes");
  if (workers.controller) {
    location.reload();
    await new Promise(() => {});
  }
}

function pressed(text) { // the only button of a page that has no model yet
  $("loading").hidden = $("download").hidden = false;
  $("progress").hidden = true;
  $("progress-note").textContent = "";
  $("download").textContent = text;
  return new Promise((done) => { $("download").onclick = done; });
}

async function permission(bundle) { // to download
  const {files, name} = await (await fetch(bundle)).json();
  const size = files.reduce((all, {bytes}) => all + bytes, 0);
  $("model").textContent = `${name}, not downloaded`;
  await pressed(`Download the model (${Math.ceil(size / 1e6)} MB)`);
}

async function start(bundle) {
  await keepPage();
  for (let allowed = localStorage.getItem(bundle); ;) {
    try {
      if (!allowed) await permission(bundle);
      allowed = true;
      return await loaded(bundle);
    } catch (error) {
      $("model").textContent = "no model";
      $("fault").textContent = error.message;
      await pressed("Try again");
      $("fault").textContent = "";
    }
  }
}

async function loaded(bundle) {
  $("download").hidden = true;
  const onProgress = ({loaded, total}) => {
    $("loading").hidden = $("progress").hidden = false;
    $("progress").value = loaded / total;
    $("progress-note").textContent = `Loading the model: ${Math.round(loaded / 1e6)} of ${Math.round(total / 1e6)} MB`;
  };
  const onWarning = (message) => { $("fault").textContent = message; };
  $("model").textContent = "loading the model…";
  const model = await load(bundle, {onProgress, onWarning});
  localStorage.setItem(bundle, "downloaded");
  $("model").textContent = model.manifest.name;
  $("loading").hidden = true;
  return model;
}

export function open(bundle) {
  const loading = start(bundle), blobs = new WeakMap();
  const chats = new Map(); // of pictures, the longest unused first
  let lastCaption = Promise.resolve(), lastAnswer = Promise.resolve();

  /** The worker gets one caption at a time, and none while a question waits. */
  function inTurn(task, signal) {
    const done = lastCaption.then(async () => {
      const model = await loading;
      await lastAnswer;
      signal?.throwIfAborted();
      return task(model);
    });
    lastCaption = done.catch(() => {});
    return done;
  }

  async function chatOf(picture, model, signal) {
    const chat = chats.get(picture) ?? await model.chat(blob(picture), {signal});
    chats.delete(picture);
    chats.set(picture, chat);
    if (chats.size > MAX_CHATS) {
      const [[unused, its]] = chats;
      chats.delete(unused);
      await its.close();
    }
    return chat;
  }

  async function answer(picture, question, options, {signal, onText}) {
    const model = await loading, chat = await chatOf(picture, model, signal);
    let text = "";
    const onToken = (piece) => onText(text += piece);
    return String(await chat.ask(question, {...sampled(inCamel(options)), signal, onToken}));
  }

  function blob(picture) { // the same for a picture, so that the model encodes it once
    if (!blobs.has(picture)) {
      const [type, data] = picture.url.slice(5).split(";base64,");
      blobs.set(picture, new Blob([Uint8Array.from(atob(data), (letter) => letter.charCodeAt(0))], {type}));
    }
    return blobs.get(picture);
  }

  return {
    loaded: loading.then(({manifest}) => ({labels: Boolean(manifest.calibration?.label && manifest.calibration.caption)})),

    async caption(picture, options, signal) {
      const settings = {...sampled(inCamel(options)), signal};
      const {text, confidence} = await inTurn((model) => model.caption(blob(picture), settings), signal);
      return {caption: text, confidence};
    },

    tags: (picture, top, signal) => inTurn((model) => model.tag(blob(picture), {top, signal}), signal),

    async match(picture, texts) {
      const found = await (await loading).match(blob(picture), texts);
      return found.map((match, i) => ({text: texts[i], ...match})).sort((a, b) => b.score - a.score);
    },

    answer(...asked) {
      const answered = answer(...asked);
      lastAnswer = answered.catch(() => {});
      return answered;
    },
  };
}
