// Keeps the page and the engine for visits without a network, and sets the headers that give a page threads, on hosts
// that cannot. packages/web/build.js writes the two constants; the model's pieces are kept elsewhere.
const VERSION = "", FILES = [];

const CACHE = `blip2rt page ${VERSION}`;
const HEADERS = {"Cross-Origin-Opener-Policy": "same-origin", "Cross-Origin-Embedder-Policy": "require-corp"};
const SECONDS_FOR_A_SERVER = 1;

addEventListener("install", (event) => event.waitUntil(
  caches.open(CACHE).then((cache) => cache.addAll(FILES.map((file) => new Request(file, {cache: "no-cache"}))))));

addEventListener("activate", (event) => event.waitUntil((async () => {
  for (const name of await caches.keys()) if (name.startsWith("blip2rt page ") && name !== CACHE) await caches.delete(name);
  await clients.claim();
})()));

addEventListener("fetch", (event) => {
  const url = new URL(event.request.url), path = url.href.slice(registration.scope.length).replace(/[?#].*/, "");
  if (event.request.method === "GET" && url.href.startsWith(registration.scope) && FILES.includes(path || "./")) {
    event.respondWith(path === "ready" ? ready() : kept(path || "./").then(withHeaders));
  }
});

const kept = async (path) => await (await caches.open(CACHE)).match(path) ?? fetch(path);

async function ready() { // a server may answer at this address now
  try {
    return await fetch("ready", {cache: "no-cache", signal: AbortSignal.timeout(1000 * SECONDS_FOR_A_SERVER)});
  } catch { return kept("ready"); }
}

function withHeaders(response) {
  const headers = new Headers(response.headers);
  for (const [name, value] of Object.entries(HEADERS)) headers.set(name, value);
  return new Response(response.body, {status: response.status, headers});
}
