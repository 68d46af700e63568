/** The package in Node: texts beside those of the native core, errors, streams and cancellation. */
import assert from "node:assert/strict";
import {execFileSync, spawnSync} from "node:child_process";
import {mkdtemp, cp, readFile, writeFile} from "node:fs/promises";
import {tmpdir} from "node:os";
import {join} from "node:path";
import {after, before, test} from "node:test";
import {load} from "../src/node.js";
import {CAPTION, NANO, PHOTO, ROOT, python} from "./site.js";

const DECODE = `
import sys, base64, json
from PIL import Image
image = Image.open(sys.argv[1]).convert("RGBA")
print(json.dumps({"width": image.width, "height": image.height, "data": base64.b64encode(image.tobytes()).decode()}))`;
let model, image;

before(async () => {
  const {data, ...size} = JSON.parse(python(DECODE, PHOTO));
  image = {...size, data: Uint8Array.from(Buffer.from(data, "base64"))};
  model = await load(NANO);
});
after(() => model.close());

test("texts and judgements are those of the native core", async () => {
  const native = JSON.parse(python(`
import os, sys, json
os.environ["BLIP2RT_KERNELS"] = "sse41"  # which rounds as SIMD128 does
import blip2rt
model = blip2rt.load(sys.argv[1], backend="core")
caption = model.caption(sys.argv[2], scores=True)
match = model.match(sys.argv[2], "a cup")
print(json.dumps([str(caption.text), caption.confidence, str(model.ask(sys.argv[2], "what is in the cup?")), match.probability,
  [str(tag) for tag in model.tag(sys.argv[2])]]))`, NANO, PHOTO));
  const caption = await model.caption(image, {scores: true});
  const {probability} = await model.match(image, "a cup");
  assert.equal(`${caption}`, CAPTION);
  assert.equal(`${caption}`, native[0]);
  assert.ok(Math.abs(caption.confidence - native[1]) < 1e-5, `${caption.confidence} ${native[1]}`);
  assert.equal(`${await model.ask(image, "what is in the cup?")}`, native[2]);
  assert.ok(Math.abs(probability - native[3]) < 1e-5, `${probability} ${native[3]}`);
  assert.deepEqual((await model.tag(image)).map(({label}) => label), native[4]);
  assert.equal(await model.sees(image, "a cup"), true);
  assert.equal(await model.sees(image, "a dog"), false);
});

test("the packed package, installed elsewhere, runs its command and imports", async () => {
  const folder = await mkdtemp(join(tmpdir(), "installed-"));
  const run = (...command) => spawnSync(command[0], command.slice(1), {cwd: folder, encoding: "utf8"});
  const packed = execFileSync("npm", ["pack", "--pack-destination", folder], {cwd: join(ROOT, "packages/web"), encoding: "utf8"}).trim().split("\n").at(-1);
  assert.equal(run("npm", "install", "--prefix", folder, "--offline", "--no-audit", "--no-fund", `./${packed}`).status, 0);
  const command = "node_modules/.bin/blip2rt-web";
  assert.deepEqual([run(command).status, run(command).stderr], [2, "usage: blip2rt-web BUNDLE OUT\n"]);
  const missing = run(command, "nowhere", "out");
  assert.equal(missing.status, 2);
  assert.match(missing.stderr, /^nowhere is no bundle .*\n$/);
  await writeFile(join(folder, "blip2rt.json"), JSON.stringify({name: "small", files: {}}));
  assert.equal(run(command, ".", "out").status, 0);
  assert.equal(JSON.parse(await readFile(join(folder, "out/pieces.json"), "utf8")).name, "small");
  assert.equal(run("node", "--input-type=module", "-e", 'import {load} from "blip2rt-web"; console.log(typeof load)').stdout, "function\n");
});

test("pieces of a stream make the text", async () => {
  const pieces = [];
  const {text} = await model.caption(image, {numBeams: 1, pool: false, onToken: (piece) => pieces.push(piece)});
  assert.ok(pieces.length > 3);
  assert.equal(pieces.join("").trim(), text);
});

test("several captions, a match of several texts, a chat", async () => {
  const captions = await model.caption(image, {numCaptions: 2, numBeams: 3});
  assert.equal(captions.length, 2);
  const [cup, dog] = await model.match(image, ["a cup of coffee", "a dog"]);
  assert.ok(cup.score > dog.score);
  const chat = await model.chat(image);
  assert.equal(`${await chat.ask("What colour is the cup?")}`, "red");
  await chat.close();
  await assert.rejects(chat.ask("Where is it?"), {name: "OptionError"});
});

test("an aborted call rejects, ends the text, and leaves the model usable", async () => {
  const stop = new AbortController(), begun = performance.now();
  const onToken = () => stop.abort();
  await assert.rejects(model.caption(image, {numBeams: 1, pool: false, minNewTokens: 400, maxNewTokens: 400, signal: stop.signal, onToken}), {name: "AbortError"});
  assert.equal(`${await model.caption(image)}`, CAPTION);
  assert.ok(performance.now() - begun < 30_000);
});

test("errors carry the engine's message and kind", async () => {
  await assert.rejects(model.caption(image, {numBeam: 3}), ({name, message}) => name === "OptionError" && message.includes("num_beam"));
  await assert.rejects(model.caption(image, {numBeams: 0}), ({name, message}) => name === "OptionError" && message.startsWith("num_beams"));
  await assert.rejects(model.caption("photo.jpg"), ({name, message}) => name === "ImageError" && message.includes("sharp"));
  await assert.rejects(model.caption({data: new Uint8Array(3), width: 1, height: 1}), {name: "ImageError"});
  await assert.rejects(load("/nowhere"), ({name, message}) => name === "BundleError" && message.includes("/nowhere"));
});

test("a changed manifest gets the native message", async () => {
  const folder = await mkdtemp(join(tmpdir(), "stranger-"));
  await cp(NANO, folder, {recursive: true, dereference: true});
  const manifest = await readFile(join(folder, "blip2rt.json"), "utf8");
  await writeFile(join(folder, "blip2rt.json"), manifest.replace('"layers": 30', '"layers": 31'));
  const native = python(`
import sys, blip2rt
try: blip2rt.load(sys.argv[1], backend="core").caption(sys.argv[2])
except Exception as error: print(error)`, folder, PHOTO).trim();
  await assert.rejects(load(folder), ({name, message}) => {
    assert.equal(message.replaceAll("/bundle", folder), native);
    return name === "BundleError";
  });
});
