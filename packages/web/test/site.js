/** A static web server that tests can slow down, cut, and count, and the browsers that visit it. */
import {execFileSync} from "node:child_process";
import {createReadStream} from "node:fs";
import {readFile, stat} from "node:fs/promises";
import {createServer} from "node:http";
import {extname, join} from "node:path";
import puppeteer from "puppeteer-core";

export const ROOT = join(import.meta.dirname, "../../..");
export const NANO = join(ROOT, "blip2rt/models/nano"), PHOTO = join(ROOT, "docs/photo.jpg");
export const CAPTION = "a cup of coffee sitting on a table";
const TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".wasm": "application/wasm", ".jpg": "image/jpeg"};

/** Answers api.html, an empty page. */
export const blank = (path, response) => path === "api.html" &&
  Boolean(response.setHeader("Content-Type", "text/html").end("<!doctype html><title>empty</title>"));

/** Serves a folder. `fault(path, response)`: true if it answered. */
export class Site {
  requests = []; // paths
  fault = blank;

  static async of(folder, {isolated = false} = {}) {
    const site = new Site();
    site.server = createServer((request, response) => site.answer(folder, isolated, request, response));
    await new Promise((done) => site.server.listen(0, "127.0.0.1", done));
    site.port = site.server.address().port;
    site.url = `http://localhost:${site.port}/`;
    return site;
  }

  async answer(folder, isolated, request, response) {
    const path = decodeURIComponent(new URL(request.url, "http://localhost").pathname.slice(1)) || "index.html";
    this.requests.push(path);
    if (isolated) {
      response.setHeader("Cross-Origin-Opener-Policy", "same-origin");
      response.setHeader("Cross-Origin-Embedder-Policy", "require-corp");
    }
    if (await this.fault(path, response)) return;
    const file = join(folder, path), size = await stat(file).then((found) => found.size, () => null);
    if (size === null) return void response.writeHead(404).end();
    response.setHeader("Content-Type", TYPES[extname(file)] ?? "application/octet-stream");
    response.setHeader("Content-Length", size);
    createReadStream(file).pipe(response);
  }

  pieces() { return this.requests.filter((path) => path.endsWith(".bin")); }

  async close() {
    this.server.closeAllConnections();
    await new Promise((done) => this.server.close(done));
  }
}

export const BROWSERS = {
  chromium: () => puppeteer.launch({executablePath: "/usr/bin/chromium", headless: true, args: ["--no-sandbox", "--disable-dev-shm-usage"]}),
  firefox: (prefs = {}) => puppeteer.launch({browser: "firefox", executablePath: "/usr/bin/firefox-esr", headless: true, extraPrefsFirefox: prefs}),
};

/** Run Python in the environment that has blip2rt installed. */
export const python = (code, ...args) => execFileSync(join(ROOT, ".venv-dev/bin/python"), ["-c", code, ...args], {encoding: "utf8", maxBuffer: 1e9});

export const photo = () => readFile(PHOTO, "base64");
