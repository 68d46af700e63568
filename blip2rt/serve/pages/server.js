"use strict";
// Where captions and answers come from: a server. browser.js of the static page has the same methods, for a worker.

class NoKey extends Error {}

async function call(path, body, signal) {
  const headers = {"Content-Type": "application/json"};
  const key = sessionStorage.getItem("key");
  if (key) headers.Authorization = `Bearer ${key}`;
  const response = await fetch(path, {method: "POST", headers, body: JSON.stringify(body), signal}).catch((error) => {
    throw error.name === "AbortError" ? error : new Error("The server does not answer: is it still running?");
  });
  if (response.status === 401) {
    await askForKey(key ? "This API key is wrong" : "");
    return call(path, body, signal);
  }
  if (!response.ok) {
    const said = await response.json().catch(() => null);
    const error = new Error(said?.error?.message ?? `the server answers ${response.status}`);
    error.retry = Number(response.headers.get("Retry-After")) || 0;
    throw error;
  }
  return response;
}

function askForKey(said) {  // rejects if Escape closes the dialog
  const dialog = $("key-dialog");
  return new Promise((done, fail) => {
    dialog.addEventListener("close", () => {
      if (dialog.returnValue !== "given") { fail(new NoKey("The server needs an API key")); return; }
      sessionStorage.setItem("key", $("key").value.trim());
      done();
    }, {once: true});
    $("key-fault").textContent = said;
    if (!dialog.open) { dialog.returnValue = ""; dialog.showModal(); }
  });
}

async function* events(response) {  // yields the objects of a stream of server-sent events
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let held = "";
  for (;;) {
    const {value, done} = await reader.read();
    if (done) return;
    const blocks = (held + value).split("\n\n");
    held = blocks.pop();
    for (const block of blocks) {
      const data = block.replace(/^data: /, "");
      if (data === "[DONE]") return;
      const event = JSON.parse(data);
      if (event.error) throw new Error(event.error.message);
      yield event;
    }
  }
}

const asJson = async (path, body, signal) => (await call(path, body, signal)).json();

const server = {  // a picture is {url: a data URI, log: [{asked, said}]}
  caption: ({url}, options, signal) => asJson("v1/caption", {image: url, ...options}, signal),  // {caption, confidence?}
  tags: async ({url}, top, signal) => (await asJson("v1/tags", {image: url, top}, signal)).tags,
  match: async ({url}, texts) => (await asJson("v1/match", {image: url, texts})).matches,
  search: async (text, n) => (await asJson("v1/search", {text, n})).hits,

  async answer({url, log}, question, options, {signal, onText}) {
    const messages = log.flatMap(({asked, said}) =>
      [{role: "user", content: asked}, {role: "assistant", content: said}]);
    messages.push({role: "user", content: question});
    messages[0] = {role: "user", content: [{type: "image_url", image_url: {url}}, {type: "text", text: messages[0].content}]};
    let text = "";
    for await (const chunk of events(await call("v1/chat/completions", {messages, stream: true, ...options}, signal))) {
      const piece = chunk.choices[0]?.delta.content;
      if (piece) onText(text += piece);
    }
    return text;
  },
};
