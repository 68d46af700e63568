#!/usr/bin/env node
/** blip2rt-web BUNDLE OUT: cut a bundle into the pieces that `load` downloads. */
import {cut} from "./cut.js";

const [bundle, out, ...rest] = process.argv.slice(2);
if (!out || rest.length) {
  console.error("usage: blip2rt-web BUNDLE OUT");
  process.exit(2);
}
await cut(bundle, out).catch((error) => {
  console.error(`${bundle} is no bundle (${error.message}): give the folder that has its blip2rt.json`);
  process.exit(2);
});
