/** The package and the page in Chromium and Firefox, on a server that can be cut, slow, damaged or a stranger's. */
import assert from "node:assert/strict";
import {createRequire} from "node:module";
import {cp, mkdtemp, readFile, writeFile} from "node:fs/promises";
import {tmpdir} from "node:os";
import {join} from "node:path";
import {after, before, describe, test} from "node:test";
import {cut} from "../src/cut.js";
import {BROWSERS, CAPTION, NANO, PHOTO, ROOT, Site, blank, photo} from "./site.js";

const WEB = join(ROOT, "build/web"), AXE = createRequire(import.meta.url).resolve("axe-core/axe.min.js");
const chosen = process.env.BROWSER ? [process.env.BROWSER] : Object.keys(BROWSERS);
const data = await photo();
let stranger, wrong;

before(async () => { // a bundle whose manifest was changed
  const folder = await mkdtemp(join(tmpdir(), "stranger-"));
  await cp(NANO, folder, {recursive: true, dereference: true});
  const manifest = await readFile(join(folder, "blip2rt.json"), "utf8");
  await writeFile(join(folder, "blip2rt.json"), manifest.replace('"layers": 30', '"layers": 31'));
  stranger = await mkdtemp(join(tmpdir(), "site-"));
  await cut(folder, stranger);
  wrong = await mkdtemp(join(tmpdir(), "wrong-"));
});

/** Run in the page: load the model, caption the photograph, and say what happened. */
async function captionHere([bundle, data]) {
  const told = {warnings: [], progress: []};
  try {
    const {load} = await import("/blip2rt-web/src/index.js");
    const model = await load(bundle, {
      onWarning: (message) => told.warnings.push(message),
      onProgress: ({loaded, total}) => told.progress.push(loaded / total),
    });
    if (!data) return model.close(), told;
    const blob = new Blob([Uint8Array.from(atob(data), (letter) => letter.charCodeAt(0))], {type: "image/jpeg"});
    told.caption = String(await model.caption(blob));
    if (told.caption) {
      const stop = new AbortController();
      told.aborted = await model.caption(blob, {numBeams: 1, pool: false, minNewTokens: 300, maxNewTokens: 300, signal: stop.signal, onToken: () => stop.abort()})
        .catch((error) => error.name);
      told.after = String(await model.caption(blob));
    }
    model.close();
  } catch (error) { told.error = `${error.name}: ${error.message}`; }
  return told;
}

for (const name of chosen) {
  describe(name, () => {
    let browser, site;
    before(async () => { browser = await BROWSERS[name](); });
    after(() => browser.close());

    /** Open a page of a new site, whose origin has nothing stored. */
    async function fresh(folder = WEB, options = {isolated: true}) {
      site = await Site.of(folder, options);
      return newPage();
    }
    async function newPage(path = "api.html") {
      const page = await browser.newPage();
      page.elsewhere = [];
      page.on("request", (request) => { if (/^https?:/.test(request.url()) && !request.url().startsWith(site.url)) page.elsewhere.push(request.url()); });
      await page.goto(site.url + path);
      return page;
    }

    for (const isolated of [false, true]) {
      test(`a caption ${isolated ? "on two threads" : "on one thread"}, a stop, and the same from storage`, async () => {
        const page = await fresh(WEB, {isolated});
        assert.equal(await page.evaluate(() => crossOriginIsolated), isolated);
        const first = await page.evaluate(captionHere, ["model/pieces.json", data]);
        assert.deepEqual([first.caption, first.aborted, first.after, first.error], [CAPTION, "AbortError", CAPTION, undefined]);
        assert.deepEqual(first.progress, first.progress.toSorted((a, b) => a - b));
        const fetched = site.pieces().length;
        const second = await page.evaluate(captionHere, ["model/pieces.json", data]);
        assert.equal(second.caption, CAPTION);
        assert.equal(site.pieces().length, fetched, "the pieces were kept");
        assert.deepEqual(page.elsewhere, []);
        await page.close();
        await site.close();
      });
    }

    test("two tabs download each piece once", async () => {
      const pages = [await fresh(), await newPage()];
      const found = await Promise.all(pages.map((page) => page.evaluate(captionHere, ["model/pieces.json", data])));
      assert.deepEqual(found.map(({caption, error}) => caption ?? error), [CAPTION, CAPTION]);
      assert.equal(site.pieces().length, new Set(site.pieces()).size);
      for (const page of pages) await page.close();
      await site.close();
    });

    test("damaged, cut off and slow pieces are fetched again; pieces that arrived are not", async () => {
      const page = await fresh(), bad = new Set();
      site.fault = async (path, response) => {
        if (!path.endsWith(".bin")) return blank(path, response);
        const number = new Set(site.pieces()).size;
        if (bad.has(path)) return false;
        bad.add(path);
        if (number === 2) return Boolean(response.end(Buffer.alloc(24_000_000)));
        if (number === 3) { response.writeHead(200, {"Content-Length": 24_000_000}).write("cut off"); setTimeout(() => response.destroy(), 200); return true; }
        if (number === 4) return Boolean(response.writeHead(503).end());
        await new Promise((done) => setTimeout(done, 500));
        return false;
      };
      const {caption, error} = await page.evaluate(captionHere, ["model/pieces.json", data]);
      assert.equal(caption ?? error, CAPTION);
      assert.equal(site.pieces().length, new Set(site.pieces()).size + 3);
      await page.close();
      await site.close();
    });

    test("a stranger's bundle gets the native message, and one too large is refused before the download", async () => {
      const page = await fresh(stranger);
      site.fault = async (path, response) => {
        if (path === "large.json") {
          const bytes = 3e9, sha256 = "0".repeat(64);
          return Boolean(response.end(JSON.stringify({format: "blip2rt-pieces", name: "large", pieces: [{sha256, bytes}], files: [{name: "a", bytes}]})));
        }
        if (path === "no.json") return Boolean(response.end("[]"));
        if (!path.startsWith("blip2rt-web/")) return blank(path, response);
        return Boolean(response.setHeader("Content-Type", path.endsWith(".js") ? "text/javascript" : "application/wasm").end(await readFile(join(WEB, path))));
      };
      const told = async (list) => (await page.evaluate(captionHere, [list, data])).error;
      assert.match(await told("pieces.json"), /^BundleError: \/bundle\/blip2rt\.json is damaged: llm lacks the inputs past_key_30, past_value_30;/);
      const fetched = site.pieces().length;
      assert.match(await told("large.json"), /^MemoryError: large needs 3,128 MB of memory, and a page may use .*: choose a smaller bundle/);
      assert.match(await told("no.json"), /^BundleError: .*no\.json is no list of a bundle's pieces/);
      assert.match(await told("missing.json"), /^BundleError: .*answers 404/);
      assert.equal(site.pieces().length, fetched);
      await page.close();
      await site.close();
    });

    /** Take the Origin Private File System away from the workers of the package. */
    async function withoutFolders(path, response) {
      if (path !== "blip2rt-web/src/worker.js") return blank(path, response);
      response.setHeader("Content-Type", "text/javascript").write("delete FileSystemFileHandle.prototype.createWritable;");
      return Boolean(response.end(await readFile(join(WEB, path))));
    }

    test("pieces are kept in the Cache API where there is no private file system", async () => {
      const page = await fresh();
      site.fault = withoutFolders;
      const [first, second] = [await page.evaluate(captionHere, ["model/pieces.json"]), site.pieces().length];
      await page.evaluate(captionHere, ["model/pieces.json"]);
      assert.deepEqual([first.error, first.warnings, second], [undefined, [], site.pieces().length]);
      assert.ok(await page.evaluate(async () => (await caches.keys()).length > 1));
      await page.close();
      await site.close();
    });

    for (const fault of [blank, withoutFolders]) test(`a full quota is said, and the model runs${fault === blank ? "" : ", by the Cache API"}`, async () => {
      const full = name === "firefox" ? await BROWSERS.firefox({"dom.quotaManager.temporaryStorage.fixedLimit": 60_000}) : browser;
      site = await Site.of(WEB, {isolated: true});
      site.fault = fault;
      const page = await full.newPage();
      await page.goto(`${site.url}api.html`);
      if (name === "chromium") {
        const session = await page.createCDPSession();
        await session.send("Storage.overrideQuotaForOrigin", {origin: site.url, quotaSize: 60e6});
      }
      const {caption, error, warnings} = await page.evaluate(captionHere, ["model/pieces.json", data]);
      assert.equal(caption ?? error, CAPTION);
      assert.equal(warnings.length, 1);
      assert.match(warnings[0], /has no room for \d+ MB more, so the next visit downloads them again: free some disk space/);
      await page.close();
      if (full !== browser) await full.close();
      await site.close();
    });

    test("the example fills in missing alternative texts", async () => {
      site = await Site.of(WEB, {isolated: true});
      const example = await readFile(join(ROOT, "examples/web/alt-texts.html"));
      site.fault = (path, response) => path === "alt-texts.html" && Boolean(response.setHeader("Content-Type", "text/html").end(example));
      const page = await newPage("alt-texts.html");
      await page.waitForFunction(() => document.getElementById("status").textContent.startsWith("Every"), {timeout: 120_000});
      const [cup, man] = await page.$$eval("img", (images) => images.map(({alt}) => alt));
      assert.match(cup, /^(perhaps )?a cup of coffee/);
      assert.match(man, /^(perhaps )?a man .*camera/);
      await page.close();
      await site.close();
    });

    test("the page: download, caption, threads, and a second visit without a network", async () => {
      site = await Site.of(WEB);
      let page = await newPage("");
      await page.waitForSelector("#download", {visible: true});
      await page.waitForFunction(() => document.getElementById("download").textContent.includes("MB"));
      assert.deepEqual(site.pieces(), [], "nothing large is downloaded before it was asked for");
      assert.equal(await page.evaluate(() => crossOriginIsolated), true, "the service worker sets the headers");
      site.fault = (path, response) => path.endsWith(".bin") && Boolean(response.writeHead(503).end());
      await page.click("#download");
      await page.waitForFunction(() => document.getElementById("download").textContent === "Try again", {timeout: 60_000});
      assert.match(await page.$eval("#fault", (each) => each.textContent), /does not arrive \(the server answers 503/);
      site.fault = blank;
      await page.click("#download");
      const captioned = (which) => which.waitForFunction(() => document.getElementById("caption").textContent.length > 3, {timeout: 120_000});
      await page.waitForFunction(() => document.getElementById("model").textContent === "nano", {timeout: 120_000});
      await (await page.$("#files")).uploadFile(PHOTO);
      await captioned(page);
      assert.equal(await page.$eval("#caption", (each) => each.textContent), CAPTION);
      assert.deepEqual(page.elsewhere, []);
      await page.evaluate(() => document.getElementById("clear").onclick());
      await page.close();

      const {port} = site;
      await site.close(); // the network is cut
      page = await browser.newPage();
      await page.goto(`http://localhost:${port}/`);
      await page.waitForFunction(() => document.getElementById("model").textContent === "nano", {timeout: 120_000});
      await (await page.$("#files")).uploadFile(PHOTO);
      await captioned(page);
      await page.type("#question", "What is in the cup?");
      await page.keyboard.press("Enter");
      await page.waitForFunction(() => document.querySelector("#log .said:not(.coming)"), {timeout: 60_000});
      assert.equal(await page.$eval("#log .said", (each) => each.textContent), "coffee");
      await page.waitForFunction(() => document.querySelector("#labels li"), {timeout: 60_000});
      const add = async (file) => (await page.$("#files")).uploadFile(file);
      await writeFile(join(wrong, "text.jpg"), "no picture");
      await writeFile(join(wrong, "disc.svg"), '<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"><circle r="9" fill="red"/></svg>');
      await add(join(wrong, "text.jpg"));
      await page.waitForFunction(() => document.getElementById("picture-fault").textContent.startsWith("text.jpg: the browser cannot decode this"));
      await add(join(wrong, "disc.svg"));
      await page.waitForFunction(() => document.getElementById("picture").alt === "disc.svg");
      await page.click("#remove"); // ends its caption

      await page.setViewport({width: 390, height: 664});
      assert.ok(await page.evaluate(() => document.documentElement.scrollWidth <= 390));
      await page.evaluate(await readFile(AXE, "utf8"));
      const violations = await page.evaluate(async () => (await axe.run({runOnly: ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa"]})).violations.map(({id, nodes}) => `${id}: ${nodes[0].html}`));
      assert.deepEqual(violations, []);
      const reached = new Set();
      for (let i = 0; i < 30; i += 1) {
        await page.keyboard.press("Tab");
        reached.add(await page.evaluate(() => document.activeElement.id));
      }
      for (const id of ["files", "webcam", "question", "send", "texts", "match"]) assert.ok(reached.has(id), `${id} by keyboard`);
      await page.close();
    });
  });
}
