// An `open` that looks.ts can watch, put into node:fs/promises before anybody imports it: Bun preloads this file.
const files = process.getBuiltinModule('node:fs/promises');

const { open } = files;
const watchable: typeof open & { inner: typeof open } = Object.assign(
  (...args: Parameters<typeof open>) => watchable.inner(...args),
  { inner: open },
);
files.open = watchable;
