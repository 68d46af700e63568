// Lists the routes of the API from openapi.json.
"use strict";
const $routes = document.getElementById("routes");
const make = (name, text = "", ...children) => {
  const node = document.createElement(name);
  node.textContent = text;
  node.append(...children);
  return node;
};
fetch("openapi.json").then((response) => response.json()).then((api) => {
  const found = (schema) => schema?.$ref ? api.components.schemas[schema.$ref.split("/").pop()] : schema;
  const kind = (schema) => schema.anyOf ? schema.anyOf.map(kind).filter((each) => each !== "null").join(" | ")
    : schema.$ref ? schema.$ref.split("/").pop()
    : schema.type === "array" ? `[${kind(schema.items ?? {})}]`
    : schema.enum ? schema.enum.map((each) => JSON.stringify(each)).join(" | ") : schema.type ?? "any";
  const table = (schema) => {
    const rows = Object.entries(schema.properties ?? {}).map(([name, field]) => make("tr", "",
      make("td", "", make("code", name)), make("td", kind(field)),
      make("td", (schema.required ?? []).includes(name) ? "required" : "")));
    return make("table", "", make("thead", "", make("tr", "", make("th", "field"), make("th", "type"), make("th", ""))),
      make("tbody", "", ...rows));
  };
  $routes.replaceChildren(...Object.entries(api.paths).flatMap(([path, methods]) =>
    Object.entries(methods).map(([method, route]) => {
      const details = make("details", "", make("summary", "", make("code", `${method.toUpperCase()} ${path}`),
        ` ${route.summary}`));
      const content = route.requestBody?.content ?? {};
      const schema = found(content["application/json"]?.schema);
      if (schema) {
        details.append(make("p", `${schema.description ?? ""} ${Object.keys(content).join(" or ")}`), table(schema));
        for (const name of new Set(JSON.stringify(schema).match(/schemas\/\w+/g) ?? [])) {
          const inner = api.components.schemas[name.slice(8)];
          details.append(make("p", `${name.slice(8)}: ${inner.description ?? ""}`), table(inner));
        }
      }
      return details;
    })));
});
