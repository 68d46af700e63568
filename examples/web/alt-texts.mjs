#!/usr/bin/env node
// node alt-texts.mjs BUNDLE FOLDER: add alt texts to the pictures of a static site's HTML files, after the generator ran.
// Needs `npm install blip2rt-web sharp`. Pictures with an alt attribute, even an empty one, are left alone.
import {readFile, readdir, writeFile} from "node:fs/promises";
import {dirname, join} from "node:path";
import {load} from "blip2rt-web";
import sharp from "sharp";

const [bundle, folder, ...rest] = process.argv.slice(2);
function stop(message) {
  console.error(message);
  process.exit(2);
}
if (!folder || rest.length) stop("usage: node alt-texts.mjs BUNDLE FOLDER");
const names = await readdir(folder, {recursive: true}).catch((error) => stop(`${folder} is no folder (${error.code}): give the one that has the site's HTML files`));
const model = await load(bundle).catch((error) => stop(error.message)), captions = new Map();

async function caption(path) { // of a picture, once
  if (!captions.has(path)) {
    const picture = sharp(path).rotate().ensureAlpha(); // rotate applies EXIF's orientation
    const {data, info} = await picture.raw().toBuffer({resolveWithObject: true});
    captions.set(path, String(await model.caption({data, width: info.width, height: info.height})));
  }
  return captions.get(path);
}

for (const name of names) {
  if (!name.endsWith(".html")) continue;
  const file = join(folder, name), html = await readFile(file, "utf8");
  let filled = html;
  for (const [tag, src] of html.matchAll(/<img(?![^>]*\salt\s*=)[^>]*?\ssrc="([^":]+)"[^>]*>/g)) {
    const path = src.startsWith("/") ? join(folder, src) : join(dirname(file), src);
    try {
      const alt = (await caption(decodeURIComponent(path))).replaceAll("&", "&amp;").replaceAll('"', "&quot;");
      filled = filled.replaceAll(tag, () => tag.replace("<img", () => `<img alt="${alt}"`));
      console.log(`${name}: ${src}: ${alt}`);
    } catch (error) { console.error(`${name}: ${src}: ${error.message}`); process.exitCode = 1; }
  }
  if (filled !== html) await writeFile(file, filled);
}
model.close();
