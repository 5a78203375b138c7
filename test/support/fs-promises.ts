// node:fs/promises with an `open` that looks.ts can watch: an import map gives it to Deno, where no builtin changes.
import files, { open as original } from 'node:fs/promises';
export * from 'node:fs/promises';

export const open: typeof original & { inner: typeof original } = Object.assign(
  (...args: Parameters<typeof original>) => open.inner(...args),
  { inner: original },
);
export default { ...files, open };
