// An example server as a process of its own, with a real key file.
import { type ChildProcess, spawn } from 'node:child_process';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import { text } from 'node:stream/consumers';
import { keyPair, root, type Scope } from './support.js';

/** Writes a key file, whose key may have `nbf` and `exp`, and removes it when the scope ends. */
export async function keyFile(scope: Scope, times: { nbf?: number; exp?: number } = {}): Promise<string> {
  const folder = mkdtempSync(join(tmpdir(), 'mcp-auth-test-'));
  scope.after(() => rmSync(folder, { recursive: true, force: true }));
  const { privateJwk } = await keyPair();
  const file = join(folder, 'mcp-private.json');
  writeFileSync(file, JSON.stringify({ keys: [{ ...privateJwk, ...times }] }), { mode: 0o600 });
  return file;
}

/** Starts build/examples/NAME on a free port, waits until it says where it listens, and ends it with the scope. */
export async function startExample(
  scope: Scope,
  name: string,
  env: Record<string, string>,
): Promise<{ child: ChildProcess; url: string }> {
  const child = spawn(process.execPath, [join(root, 'build/examples', name)], {
    env: { ...process.env, HOST: '127.0.0.1', PORT: '0', ...env },
    stdio: ['ignore', 'pipe', 'pipe'],
    timeout: 60_000, // a program that is stuck fails its test, not the run
    killSignal: 'SIGKILL',
  });
  scope.after(() => child.kill('SIGKILL'));
  const stderr = text(child.stderr);
  for await (const line of createInterface({ input: child.stdout })) {
    const url = /(?:http|ws):\/\/\S+/.exec(line)?.[0];
    if (url) return { child, url };
  }
  throw new Error(`${name} ended before it listened: ${await stderr}`);
}
