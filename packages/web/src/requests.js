/** The worker's side of Model: takes one request after the other, and answers with a result, pieces of a text, or an error. */
import {Engine} from "./engine.js";

/**
 * send(message), platform: {create(threads), bring(source, engine, settings), pixels(image), isCancelled(flag)}; see
 * worker.js. Returns the function that takes messages.
 */
export function requests(send, platform) {
  let engine, last = Promise.resolve();
  const loading = new AbortController();

  const methods = {
    async load({source, threads, deviceMemory, options}, id) {
      const settings = {
        deviceMemory,
        signal: loading.signal,
        onProgress: (progress) => send({id, progress}),
        onWarning: (warning) => send({id, warning}),
      };
      await platform.bring(source, () => platform.create(Engine, threads).then((made) => (engine = made)), settings);
      return engine.load(options);
    },
    caption: ({prompt, options, scores}, features) => engine.caption(features, prompt, options, scores),
    ask: ({question, options}, features) => engine.ask(features, question, options),
    chat: ({number, options}, features) => engine.chat(number, features, options),
    chatAsk: ({number, question, options}) => engine.chatAsk(number, question, options),
    chatClose: ({number}) => engine.chatClose(number),
    match: ({texts}, features) => texts.map((text) => engine.match(features, text)),
    sees: ({statement}, features) => engine.sees(features, statement),
    tag: ({labels, top, threshold}, features) => engine.tag(features, labels, top, threshold),
  };

  async function answer({id, method, args, cancel}) {
    const stop = () => platform.isCancelled(cancel);
    try {
      if (stop()) return; // its caller no longer waits
      const features = args.image && await encoded(args.image);
      if (stop()) return;
      if (engine) engine.onPiece = (piece) => { if (piece) send({id, piece}); return stop(); };
      send({id, result: await methods[method](args, features ?? id)});
    } catch (error) {
      send({id, error: {name: error.name, message: error.message}});
    }
  }

  async function encoded({key, image}) {
    return engine.encode(engine.has(key) ? {key} : {key, ...await platform.pixels(image)});
  }

  return (message) => {
    if (message.abortLoading) loading.abort();
    else last = last.then(() => answer(message));
  };
}
