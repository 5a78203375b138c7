// What more than one suite needs: the repository's root, keys, servers and processes. Nothing else.
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { accessSync, constants } from 'node:fs';
import { createServer, type RequestListener, type Server } from 'node:http';
import type { AddressInfo } from 'node:net';
import { delimiter, join } from 'node:path';
import { buffer } from 'node:stream/consumers';
import { setTimeout as sleep } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import { AuthError, generateKeyPair } from 'mcp-auth-middleware';

/** The repository's root; this file runs from build/test/support/. */
export const root: string = fileURLToPath(new URL('../../..', import.meta.url));

/** `{ after }` of node:test for a whole suite, or the test's own context `t`. */
export interface Scope {
  after(cleanup: () => unknown): void;
}

const pairs = new Map<string, ReturnType<typeof generateKeyPair>>();

/** A 2048-bit pair, made once per process for each name and algorithm: a second name is a second key. */
export function keyPair(
  name = 'server',
  alg: 'RSA-OAEP-256' | 'RSA-OAEP' = 'RSA-OAEP-256',
): ReturnType<typeof generateKeyPair> {
  const id = `${alg} ${name}`;
  const pair = pairs.get(id) ?? generateKeyPair({ modulusLength: 2048, alg });
  pairs.set(id, pair);
  return pair;
}

/** Serves on a free loopback port until the scope ends. */
export async function serve(
  scope: Scope,
  listener: RequestListener,
): Promise<{ server: Server; port: number; url: string }> {
  const server = createServer(listener).listen(0, '127.0.0.1');
  scope.after(() => {
    server.closeAllConnections();
    server.close();
  });
  await once(server, 'listening');
  const { port } = server.address() as AddressInfo;
  return { server, port, url: `http://127.0.0.1:${port}` };
}

export interface Finished {
  code: number | null;
  signal: NodeJS.Signals | null;
  stdout: string;
  stderr: string;
}

export interface RunOptions {
  cwd?: string;
  /** Added to the environment; undefined takes a variable out of it. */
  env?: Record<string, string | undefined>;
  /** Standard input, which is empty otherwise. */
  input?: string | Uint8Array;
  /** Milliseconds until the process is killed, so that no test hangs: 120,000. */
  timeout?: number;
}

/** Runs a program to its end. Never rejects for an exit code; does when the program cannot be started. */
export async function run(command: string, args: readonly string[], options: RunOptions = {}): Promise<Finished> {
  const child = spawn(command, args, {
    cwd: options.cwd,
    env: { ...process.env, ...options.env },
    timeout: options.timeout ?? 120_000,
    killSignal: 'SIGKILL',
  });
  child.stdin.on('error', () => {}); // a program may end without reading its input
  child.stdin.end(options.input);
  const [stdout, stderr, [code, signal]] = await Promise.all([
    buffer(child.stdout),
    buffer(child.stderr),
    once(child, 'close'),
  ]);
  return { code, signal, stdout: stdout.toString(), stderr: stderr.toString() };
}

/** The path of a program, as a shell would find it. */
export function findProgram(program: string): string | undefined {
  const paths = (process.env.PATH ?? '').split(delimiter).map((folder) => join(folder, program));
  return paths.find((path) => {
    try {
      accessSync(path, constants.X_OK);
      return true;
    } catch {
      return false;
    }
  });
}

/** Test options for a test that runs a program: without it the test is skipped, but in CI it runs and fails. */
export function needs(program: string): { skip: string | false } {
  return { skip: findProgram(program) || process.env.CI ? false : `${program} is not installed` };
}

/** Waits for what has no event of its own. */
export async function until(condition: () => boolean): Promise<void> {
  for (const end = Date.now() + 30_000; !condition();) {
    if (Date.now() > end) throw new Error(`Not within 30 s: ${condition}`);
    await sleep(2);
  }
}

/** How an authentication ends: `accepted`, or the reason of the AuthError. */
export function outcome(authentication: Promise<unknown>): Promise<string> {
  return authentication.then(
    () => 'accepted',
    (error: unknown) => {
      if (error instanceof AuthError) return error.reason;
      throw error;
    },
  );
}
