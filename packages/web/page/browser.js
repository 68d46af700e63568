// Where captions and answers of the static page come from: a model in a worker. server.js has the same methods.
import {load} from "./blip2rt-web/src/index.js";

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

async function permission(bundle) { // to download: asked unless the model was downloaded before
  if (localStorage.getItem(bundle)) return;
  const {files, name} = await (await fetch(bundle)).json();
  const size = files.reduce((all, {bytes}) => all + bytes, 0);
  $("model").textContent = `${name}, not downloaded`;
  $("loading").hidden = false;
  $("download").textContent = `Download the model (${Math.ceil(size / 1e6)} MB)`;
  await new Promise((done) => { $("download").onclick = done; });
  $("download").hidden = true;
}

async function start(bundle) {
  await keepPage();
  await permission(bundle);
  const onProgress = ({loaded, total}) => {
    $("loading").hidden = false;
    $("download").hidden = true;
    $("progress").hidden = false;
    $("progress").value = loaded / total;
    $("progress-note").textContent = `Loading the model: ${Math.round(loaded / 1e6)} of ${Math.round(total / 1e6)} MB`;
  };
  const onWarning = (message) => { $("fault").textContent = message; };
  $("model").textContent = "loading the model…";
  try {
    const model = await load(bundle, {onProgress, onWarning});
    localStorage.setItem(bundle, "downloaded");
    $("model").textContent = model.manifest.name;
    return model;
  } catch (error) {
    $("model").textContent = "no model";
    throw error;
  } finally { $("loading").hidden = true; }
}

export function open(bundle) {
  const loading = start(bundle), blobs = new WeakMap(), chats = new WeakMap();

  function blob(picture) { // the same for a picture, so that the model encodes it once
    if (!blobs.has(picture)) {
      const [type, data] = picture.url.slice(5).split(";base64,");
      blobs.set(picture, new Blob([Uint8Array.from(atob(data), (letter) => letter.charCodeAt(0))], {type}));
    }
    return blobs.get(picture);
  }

  return {
    loaded: loading.then(({manifest}) => ({labels: Boolean(manifest.calibration?.label && manifest.calibration.caption)})),

    async caption(picture, options) {
      const {text, confidence} = await (await loading).caption(blob(picture), sampled(inCamel(options)));
      return {caption: text, confidence};
    },

    tags: async (picture, top) => (await loading).tag(blob(picture), {top}),

    async match(picture, texts) {
      const found = await (await loading).match(blob(picture), texts);
      return found.map((match, i) => ({text: texts[i], ...match})).sort((a, b) => b.score - a.score);
    },

    async answer(picture, question, options, {signal, onText}) {
      const model = await loading;
      let text = "";
      const onToken = (piece) => onText(text += piece);
      const settings = {...sampled(inCamel(options)), signal, onToken};
      const chat = chats.get(picture) ?? await model.chat(blob(picture), {signal});
      chats.set(picture, chat);
      return String(await chat.ask(question, settings));
    },
  };
}
