// What Kubernetes sees of examples/server.ts: two probes and an end in two steps.
import assert from 'node:assert/strict';
import type { ChildProcess } from 'node:child_process';
import { once } from 'node:events';
import { type ClientRequest, type IncomingMessage, request } from 'node:http';
import { text } from 'node:stream/consumers';
import { describe, it, type TestContext } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { encryptToken } from 'mcp-auth-middleware';
import { keyFile, startExample } from './support/example.js';
import { keyPair } from './support/support.js';

/** A status, or `refused` when nobody listens any more. Each request is a connection of its own, as a kubelet's is. */
async function probe(url: string, path: string): Promise<number | 'refused'> {
  const req = request(url, { path, agent: false }).end();
  try {
    const [res]: IncomingMessage[] = await once(req, 'response');
    res?.resume();
    return res?.statusCode ?? 0;
  } catch (error) {
    assert.match(String(error), /ECONNREFUSED|ECONNRESET/);
    return 'refused';
  }
}

/** Probes, for 20 s at most, until this is the answer, and gives all answers on the way, each once. */
async function becomes(url: string, path: string, expected: number | 'refused'): Promise<(number | 'refused')[]> {
  const answers = new Set<number | 'refused'>();
  for (const end = Date.now() + 20_000; !answers.has(expected); await sleep(20)) {
    answers.add(await probe(url, path));
    assert.ok(Date.now() < end, `${path} is still ${[...answers].join(', ')}`);
  }
  return [...answers];
}

async function startServer(t: TestContext, times = {}): Promise<{ child: ChildProcess; url: string }> {
  return startExample(t, 'server.js', { MCP_KEY_FILE_PATH: await keyFile(t, times) });
}

/** Begins a call of whoami and leaves the last octet of its body for later. */
async function beginCall(url: string): Promise<{ req: ClientRequest; finish: () => Promise<string> }> {
  const token = await encryptToken({ name: 'Ada' }, (await keyPair()).publicJwk);
  const req = request(url, {
    method: 'POST',
    agent: false,
    headers: {
      Authorization: `Bearer ${token}`,
      'Content-Type': 'application/json',
      Accept: 'application/json, text/event-stream',
    },
  });
  req.write('{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"whoami","arguments":{}}');
  const finish = async (): Promise<string> => {
    req.end('}');
    const [res] = await once(req, 'response');
    return text(res);
  };
  return { req, finish };
}

describe('the probes of examples/server.ts', () => {
  it('are 200 while a key is valid; when it has expired the server is alive, but not ready', async (t) => {
    const { url } = await startServer(t, { exp: Math.floor(Date.now() / 1000) + 4 });
    assert.deepEqual([await probe(url, '/healthz'), await probe(url, '/readyz')], [200, 200]);
    await becomes(url, '/readyz', 503);
    assert.equal(await probe(url, '/healthz'), 200);
  });

  it('are open at their exact paths only', async (t) => {
    const { url } = await startServer(t);
    for (const path of ['/readyz/', '/healthz/x', '//readyz', '/%72eadyz', '/']) {
      assert.equal(await probe(url, path), 401, path);
    }
  });
});

describe('SIGTERM to examples/server.ts', () => {
  it('fails readiness at once, serves for five seconds more, and finishes what is under way', async (t) => {
    const { child, url } = await startServer(t);
    const closed = once(child, 'close');
    const { req, finish } = await beginCall(url);
    t.after(() => req.destroy());
    await once(req, 'socket');
    const start = performance.now();
    child.kill('SIGTERM');
    await becomes(url, '/readyz', 503);
    const late = await beginCall(url);
    assert.match(await late.finish(), /Hello, Ada!/, 'a request that comes during the drain');
    assert.equal(await probe(url, '/healthz'), 200);
    assert.deepEqual(await becomes(url, '/healthz', 'refused'), [200, 'refused']);
    assert.ok(performance.now() - start > 4900, 'whoever sends requests here has time to see it');
    assert.match(await finish(), /Hello, Ada!/, 'a request that began before');
    assert.deepEqual(await closed, [0, null]);
  });

  it('cuts a request that never ends, ten seconds after the server has closed', async (t) => {
    const { child, url } = await startServer(t);
    const closed = once(child, 'close');
    const { req } = await beginCall(url);
    const cut = once(req, 'error');
    child.kill('SIGTERM');
    const [error] = await cut;
    assert.match(error.code, /^(ECONNRESET|EPIPE)$/);
    assert.deepEqual(await closed, [0, null]);
  });

  it('is not needed on a terminal: SIGINT closes at once', async (t) => {
    const { child, url } = await startServer(t);
    const closed = once(child, 'close');
    child.kill('SIGINT');
    assert.ok(!(await becomes(url, '/readyz', 'refused')).includes(503), 'no drain');
    assert.deepEqual(await closed, [0, null]);
  });
});
