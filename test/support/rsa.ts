// Counts the RSA private operations of this process. Nothing is mocked: the runtime's own function does the work.
import { webcrypto } from 'node:crypto';
import type { Scope } from './support.js';

/** What the library has asked of the runtime so far. */
export const rsa: {
  started: number;
  running: number;
  most: number;
  keys: webcrypto.CryptoKey[];
  order: string[] | undefined;
} = { started: 0, running: 0, most: 0, keys: [], order: undefined };

let gate: Promise<void> | undefined;

/**
 * Makes the operations that start from now on wait for the function it returns,
 * so that a queue can be looked at while it stands.
 */
export function hold(scope: Scope): () => void {
  let open = (): void => {};
  gate = new Promise((resolve) => {
    open = resolve;
  });
  const release = (): void => {
    gate = undefined;
    open();
  };
  scope.after(release); // a failed test must not hold up the next
  return release;
}

const { subtle } = webcrypto;
const decrypt = subtle.decrypt;
Object.defineProperty(subtle, 'decrypt', {
  value: async (...args: Parameters<typeof decrypt>): Promise<ArrayBuffer> => {
    rsa.started += 1;
    rsa.running += 1;
    rsa.most = Math.max(rsa.most, rsa.running);
    rsa.keys.push(args[1]);
    rsa.order?.push(Buffer.from(args[2] as Uint8Array).toString('base64url'));
    try {
      await gate;
      return await Reflect.apply(decrypt, subtle, args);
    } finally {
      rsa.running -= 1;
      rsa.keys.splice(rsa.keys.indexOf(args[1]), 1);
    }
  },
});

/** How many operations the work takes. */
export async function countRsa(work: () => Promise<unknown>): Promise<number> {
  const { started } = rsa;
  await work();
  return rsa.started - started;
}
