"use strict";
const $ = (id) => document.getElementById(id);
const SIDE = 1024;  // pixels of the longer side of an upload: more than a model uses
const IDEAS = ["What is this?", "What colour is it?", "Is there a person?"];
const EXAMPLES = [  // photographs, with questions that nano answers rightly
  ["coffee.jpg", "a cup of coffee", ["What is in the cup?", "What colour is the cup?", "Is there a spoon?"]],
  ["camera.jpg", "a man with a camera", ["What is the man holding?", "Is there a dog?", "Is there a person?"]],
];
// {url, name, caption, confidence, labels, fault, ideas, hidden, log: [{asked, said}], button, stop}
const pictures = [];  // hidden: the browser cannot show it; fault: why it has no caption; stop(): end its caption
let current = null, camera = null, running = null, labels = false;  // labels: whether the model tells labels and confidence
let model = server;  // who captions and answers: the server, or the worker of browser.js

function fault(text) { $("fault").textContent = text; }
function make(kind, properties, ...children) {
  const element = Object.assign(document.createElement(kind), properties);
  element.append(...children);
  return element;
}
const wait = (seconds) => new Promise((done) => setTimeout(done, 1000 * seconds));

function settings() {  // of Options, for those that are set
  const given = {};
  if ($("beams").value) given.num_beams = Number($("beams").value);
  if (Number($("temperature").value)) given.temperature = Number($("temperature").value);
  return given;
}

function shrunk(source, width, height) {  // a JPEG's data URI
  const scale = Math.min(1, SIDE / Math.max(width, height)), canvas = document.createElement("canvas");
  canvas.width = Math.max(1, Math.round(width * scale));
  canvas.height = Math.max(1, Math.round(height * scale));
  const pen = canvas.getContext("2d");
  pen.fillStyle = "white";
  pen.fillRect(0, 0, canvas.width, canvas.height);
  pen.drawImage(source, 0, 0, canvas.width, canvas.height);
  return canvas.toDataURL("image/jpeg", 0.92);
}

async function take(files, ideas = IDEAS) {
  const isPicture = (file) => file.type.startsWith("image/") || /\.hei[cf]$/i.test(file.name);
  const others = files.filter((file) => !isPicture(file)).map((file) => file.name);
  fault(others.length ? `no pictures: ${others.join(", ")}` : "");
  for (const file of files.filter(isPicture)) {
    const bitmap = await createImageBitmap(file).catch(() => drawing(file));
    if (bitmap) await add(shrunk(bitmap, bitmap.width, bitmap.height), file.name || "pasted picture", {ideas});
    else await add(await dataUri(file), file.name, {hidden: true});  // the server may read it, as it does HEIC
  }
}

async function drawing(file) {  // an SVG, of which browsers make no bitmap; null for others
  const url = URL.createObjectURL(file), image = make("img", {src: url});
  await image.decode().catch(() => {});
  URL.revokeObjectURL(url);
  return image.width ? image : null;
}

function dataUri(file) {
  return new Promise((done, fail) => {
    const reader = new FileReader();
    reader.onload = () => done(`data:image/heic;base64,${reader.result.split(",")[1] ?? ""}`);
    reader.onerror = () => fail(reader.error);
    reader.readAsDataURL(file);
  });
}

async function add(url, name, more = {}) {
  const picture = {url, name, hidden: false, ideas: IDEAS, log: [], ...more};
  pictures.push(picture);
  await stopCamera();
  show(picture);
  caption(picture);
}

function show(picture) {
  running?.abort();
  current = picture;
  $("hint").hidden = true;
  $("video").hidden = true;
  $("picture").hidden = picture.hidden;
  $("hidden-picture").hidden = !picture.hidden;
  $("hidden-picture").textContent = `${picture.name} (this browser cannot show it)`;
  if (!picture.hidden) $("picture").src = picture.url;
  $("matches").replaceChildren();
  $("log").replaceChildren();
  for (const {asked, said} of picture.log) { line("asked", asked); line("said", said); }
  suggest(picture.ideas);
  describe();
}

function suggest(ideas) {
  $("ideas").replaceChildren(...ideas.map((idea) => make("button", {
    type: "button", onclick: () => { $("question").value = idea; $("ask").requestSubmit(); }}, idea)));
}

function showNone() {
  current = null;
  $("hint").hidden = false;
  $("picture").hidden = $("hidden-picture").hidden = $("copy").hidden = $("remove").hidden = $("again").hidden = true;
  for (const id of ["caption", "caption-note", "picture-fault"]) $(id).textContent = "";
  for (const id of ["labels", "log", "matches"]) $(id).replaceChildren();
  suggest(IDEAS);
}

async function discard(gone) {
  running?.abort();
  await stopCamera();
  for (const picture of gone) {
    picture.stop?.();
    picture.button?.remove();
    pictures.splice(pictures.indexOf(picture), 1);
  }
  if (pictures.length) show(pictures.at(-1));
  else { showNone(); describe(); }
  save();
}
$("remove").onclick = () => discard([current]);
$("clear").onclick = () => { $("texts").value = ""; return discard([...pictures]); };
$("again").onclick = () => caption(current);

function describe() {  // after selecting a picture or receiving a caption; keeps a running answer and the focus
  if (current && !camera) {
    $("picture").alt = current.caption ?? current.name;
    $("caption").textContent = current.caption ?? (current.fault ? "" : "…");
    $("picture-fault").textContent = current.fault ? `${current.name}: ${current.fault}` : "";
    $("again").hidden = !current.fault;
    $("remove").hidden = false;
    $("caption-note").textContent = current.confidence === undefined ? "" : `${Math.round(100 * current.confidence)} % sure`;
    $("labels").replaceChildren(...(current.labels ?? []).map(({label, probability}) =>
      make("li", {title: `${Math.round(100 * probability)} %`}, label)));
    $("copy").hidden = !current.caption || !navigator.clipboard;
  }
  for (const [i, picture] of pictures.entries()) {
    picture.button ??= thumb(picture);
    const state = picture.caption ?? (picture.fault ? `${picture.name}, failed` : picture.name);
    picture.button.setAttribute("aria-label", `Picture ${i + 1}: ${state}`);
    picture.button.classList.toggle("failed", Boolean(picture.fault));
    picture.button.setAttribute("aria-pressed", String(picture === current));
  }
  for (const id of ["csv", "json", "clear"]) $(id).disabled = !pictures.length;
}

function thumb(picture) {
  const button = make("button", {}, picture.hidden ? picture.name.split(".").pop() : make("img", {src: picture.url, alt: "", draggable: false}));
  button.onclick = async () => { await stopCamera(); show(picture); };
  $("thumbs").append(button);
  return button;
}

function line(kind, text) {
  const p = make("p", {className: kind}, text);
  $("log").append(p);
  return p;
}

async function caption(picture) {
  const stop = new AbortController();
  picture.stop = () => stop.abort();
  delete picture.fault;
  describe();
  try {
    const found = await model.caption(picture, labels ? {...settings(), scores: true} : settings(), stop.signal);
    picture.caption = found.caption;
    if (found.confidence !== undefined) picture.confidence = found.confidence;
    describe();
    if (labels) picture.labels = await model.tags(picture, 8, stop.signal);
  } catch (error) { if (!stop.signal.aborted) picture.fault = error.message; }
  describe();
  save();
}

// Pictures, conversations and texts are kept in the browser until they are removed.
const store = new Promise((done) => {
  const opening = indexedDB.open("blip2rt", 1);
  opening.onupgradeneeded = () => opening.result.createObjectStore("page");
  opening.onsuccess = () => done(opening.result);
  opening.onerror = () => done(null);  // as in some private windows
});

async function save() {
  const writing = (await store)?.transaction("page", "readwrite");
  if (!writing) return;
  const kept = pictures.map(({button, stop, ...picture}) => picture);
  writing.objectStore("page").put({pictures: kept, texts: $("texts").value}, "kept");
  await new Promise((done) => { writing.oncomplete = writing.onabort = done; });
}

async function restore() {
  const reading = (await store)?.transaction("page").objectStore("page").get("kept");
  if (!reading) return;
  await new Promise((done) => { reading.onsuccess = reading.onerror = done; });
  const {pictures: kept = [], texts = ""} = reading.result ?? {};
  pictures.unshift(...kept);
  $("texts").value ||= texts;
  if (kept.length && !current) show(kept.at(-1));
  for (const picture of kept) if (!picture.caption && !picture.fault) caption(picture);
}
$("texts").onchange = save;

function download(name, type, text) {
  make("a", {download: name, href: `data:${type};charset=utf-8,${encodeURIComponent(text)}`}).click();
}
const rows = () => pictures.map(({name, caption = "", confidence = null, labels = [], log, fault = ""}) =>
  ({image: name, caption, confidence, labels: labels.map(({label}) => label), questions: log, error: fault}));
$("json").onclick = () => download("captions.json", "application/json", JSON.stringify(rows(), null, 2));
$("csv").onclick = () => {  // an apostrophe precedes what a spreadsheet would run
  const cell = (value) => `"${String(value ?? "").replace(/^'*[=+\-@\t]/, "'$&").replaceAll('"', '""')}"`;
  const lines = rows().map((row) => [row.image, row.caption, row.confidence, row.labels.join(", "), row.error]);
  const table = [["image", "caption", "confidence", "labels", "error"], ...lines];
  download("captions.csv", "text/csv", table.map((line) => line.map(cell).join(",") + "\r\n").join(""));
};

$("ask").onsubmit = async (event) => {
  event.preventDefault();
  const question = $("question").value.trim(), picture = camera ? frame() : current;
  if (!question || running) return;
  if (!picture) { fault("Choose a picture first"); return; }
  fault("");
  $("question").value = "";
  const asked = line("asked", question), said = line("said coming", "…");
  said.scrollIntoView({block: "nearest"});
  running = new AbortController();
  $("send").disabled = true;
  $("stop").hidden = false;
  try {
    const onText = (text) => { said.textContent = text; };
    const text = await model.answer(picture, question, settings(), {signal: running.signal, onText});
    said.textContent = text || "(nothing)";
    picture.log.push({asked: question, said: text});
    save();
  } catch (error) {
    if (error.name !== "AbortError") {
      fault(error.message);
      asked.remove();
      said.remove();
      $("question").value ||= question;  // to be sent again
    }
  } finally {
    said.className = "said";
    said.scrollIntoView({block: "nearest"});
    running = null;
    $("send").disabled = false;
    $("stop").hidden = true;
  }
};
$("stop").onclick = () => running?.abort();

$("match").onclick = async () => {
  const texts = $("texts").value.split("\n").map((text) => text.trim()).filter(Boolean);
  const picture = camera ? frame() : current;
  if (!texts.length || !picture) { fault(picture ? "Write a text first" : "Choose a picture first"); return; }
  fault("");
  try {
    const matches = await model.match(picture, texts);
    $("matches").replaceChildren(...matches.map(({text, probability}) => {
      const bar = make("meter", {value: probability});
      bar.setAttribute("aria-label", text);
      return make("li", {}, make("span", {}, text), bar, make("span", {}, `${(100 * probability).toFixed(1)} %`));
    }));
  } catch (error) { fault(error.message); }
};

// The number of hits above the level at which the scores of the rest flatten out.
function standOut(hits) {
  if (hits.length < 9) return hits.length;
  const tail = hits.slice(-Math.ceil(hits.length / 3)), level = tail.reduce((sum, {score}) => sum + score, 0) / tail.length;
  const least = level + 0.3 * (hits[0].score - level);
  const near = hits.findIndex(({score}) => score < least);
  return near < 0 ? hits.length : Math.max(1, near);
}

$("more").onclick = () => {
  for (const hit of $("hits").children) hit.hidden = false;
  $("more").hidden = true;
};

$("search").onsubmit = async (event) => {
  event.preventDefault();
  const text = $("wanted").value.trim();
  if (!text) return;
  fault("");
  try {
    const hits = await model.search(text, 24);
    const near = standOut(hits);
    $("hits").replaceChildren(...hits.map(({name, score, thumbnail}) => {
      const button = make("button", {}, make("img", {src: thumbnail ?? "", alt: ""}));
      button.setAttribute("aria-label", name);
      button.onclick = async () => { await add(thumbnail, name); scrollTo(0, 0); };
      return make("li", {}, button, `${score.toFixed(3)} ${name}`);
    }));
    [...$("hits").children].slice(near).forEach((hit) => { hit.hidden = true; });
    $("more").hidden = near === hits.length;
    $("search-note").textContent = hits.length ? `${near} pictures stand out` : "no pictures";
    $("search-note").scrollIntoView({behavior: "smooth", block: "start"});
  } catch (error) { fault(error.message); }
};

// Webcam: take the next frame when the caption of the last one has arrived; drop those between.
function frame() { return {url: shrunk($("video"), $("video").videoWidth, $("video").videoHeight), log: camera.log}; }

async function stopCamera() {
  if (!camera) return;
  camera.stream.getTracks().forEach((track) => track.stop());
  camera = null;
  $("webcam").setAttribute("aria-pressed", "false");
  $("webcam").textContent = "Webcam";
  $("video").hidden = true;
  $("video").srcObject = null;
  if (current) show(current);
  else showNone();
}

$("webcam").onclick = async () => {
  if (camera) return stopCamera();
  try {
    if (!navigator.mediaDevices) throw new Error("browsers allow webcams only on localhost and over https");
    const stream = await navigator.mediaDevices.getUserMedia({
      video: {width: {ideal: 640}, facingMode: {ideal: "environment"}}, audio: false});
    camera = {stream, log: [], seen: 0};
  } catch (error) { fault(`No webcam: ${error.message}`); return; }
  const mine = camera;
  $("webcam").setAttribute("aria-pressed", "true");
  $("webcam").textContent = "Stop the webcam";
  const shown = current;
  showNone();
  current = shown;
  $("hint").hidden = true;
  $("video").hidden = false;
  $("video").srcObject = camera.stream;
  await $("video").play();
  const count = () => { mine.seen += 1; if (camera === mine) $("video").requestVideoFrameCallback?.(count); };
  $("video").requestVideoFrameCallback?.(count);
  const begun = performance.now();
  for (let sent = 1; camera === mine; sent += 1) {
    try {
      const found = await model.caption(frame(), {num_beams: 1});
      if (camera !== mine) return;
      fault("");
      $("caption").textContent = found.caption;
      const rate = sent / ((performance.now() - begun) / 1000);
      $("caption-note").textContent = `${rate.toFixed(1)} captions/s, ${Math.max(0, mine.seen - sent)} frames dropped`;
    } catch (error) {
      fault(error.message);
      if (error instanceof NoKey) return stopCamera();
      await wait(error.retry || 1);
    }
  }
};

$("copy").onclick = async () => {
  await navigator.clipboard.writeText($("caption").textContent);
  $("copy").textContent = "Copied";
  await wait(1.5);
  $("copy").textContent = "Copy";
};

for (const [file, name, ideas] of EXAMPLES) {
  const button = make("button", {onclick: async () => {
    const photograph = await (await fetch(file)).blob();
    take([new File([photograph], name, {type: photograph.type})], ideas);
  }}, make("img", {src: file, alt: ""}));
  button.setAttribute("aria-label", `Example: ${name}`);
  $("examples").append(button);
}

$("files").onchange = () => { take([...$("files").files]); $("files").value = ""; };
addEventListener("paste", (event) => { if (event.clipboardData.files.length) take([...event.clipboardData.files]); });
addEventListener("dragover", (event) => { event.preventDefault(); document.body.classList.add("over"); });
addEventListener("dragleave", (event) => { if (!event.relatedTarget) document.body.classList.remove("over"); });
addEventListener("drop", (event) => {
  event.preventDefault();
  document.body.classList.remove("over");
  const {files, types} = event.dataTransfer;
  if (files.length) take([...files]);
  else if (types.includes("text/uri-list")) fault("This page may not read another site's picture: save it, and drop the file");
});
addEventListener("keydown", (event) => {
  const typing = event.target.matches("input, textarea");
  if (event.key === "Escape") { running?.abort(); if (!typing) stopCamera(); }
  if (event.key === "/" && !typing) { event.preventDefault(); $("question").focus(); }
});

async function greetHere({bundle}) {  // no server: the model runs in a worker of this page
  $("api").hidden = true;
  try {
    const {open} = await import("./browser.js");
    model = open(bundle);
    labels = true;
    await restore();
    labels = (await model.loaded).labels;
  } catch (error) { fault(error.message); }
}

showNone();
(async function greet() {
  for (;;) {
    const ready = await fetch("ready").then((response) => response.json()).catch(() => ({status: "no answer"}));
    if (ready.status === "static") return greetHere(ready);
    $("model").textContent = ready.status === "ready" ? ready.model : `${ready.status}…`;
    $("searching").hidden = !ready.pictures;
    labels = ready.labels === true;
    if (ready.status === "ready") return restore();
    await wait(1);
  }
})();
