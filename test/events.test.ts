// What operators learn: every event there is, nothing secret in any of them, and no effect on any answer.
import assert from 'node:assert/strict';
import { createHash, randomBytes } from 'node:crypto';
import { subscribe, unsubscribe } from 'node:diagnostics_channel';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { availableParallelism, tmpdir } from 'node:os';
import { join } from 'node:path';
import { describe, it } from 'node:test';
import {
  AuthError,
  type AuthEvent,
  authMiddleware,
  type AuthOptions,
  compactDecrypt,
  compactEncrypt,
  encryptToken,
  getAuth,
  getUser,
  type Jwk,
  type JwkSet,
  JWETokenVerifier,
  withAuth,
  withAuthFetch,
} from 'mcp-auth-middleware';
import { hold, rsa } from './support/rsa.js';
import { keyPair, root, run, type Scope, serve, until } from './support/support.js';
import { newPair } from './support/tokens.js';
import { ask, bearer, guard, mint, serverKeys } from './support/wire.js';

/** A server whose events are collected. */
async function watched(
  t: Scope,
  options: AuthOptions = {},
  handler?: Parameters<typeof guard>[2],
): Promise<{ port: number; events: AuthEvent[]; take: () => AuthEvent[] }> {
  const events: AuthEvent[] = [];
  const { port } = await guard(
    t,
    {
      ...options,
      onEvent: (event) => {
        events.push(event);
      },
    },
    handler,
  );
  return { port, events, take: () => events.splice(0) };
}
const isDuration = (value: unknown): boolean => typeof value === 'number' && value >= 0 && value < 60_000;
/** Without the durations, once they have been looked at. */
const timeless = (events: AuthEvent[]): object[] =>
  events.map(({ durationMs, ...rest }) => {
    if (/^(accepted|rejected|overloaded|issuer\..*)$/.test(rest.type))
      assert(isDuration(durationMs), String(durationMs));
    else assert.equal(durationMs, undefined, rest.type);
    return rest;
  });
const kidOf = async (): Promise<string> => (await keyPair()).publicJwk.kid ?? '';

describe('an event says', () => {
  it('keys.loaded at construction: every key, which one is published, and when the next one expires', async (t) => {
    const { take } = await watched(t);
    const kid = await kidOf();
    assert.deepEqual(take(), [{ type: 'keys.loaded', kids: [kid], keyId: kid }]);
    const [one, two] = await Promise.all(['one', 'two'].map(async (name) => (await keyPair(name)).privateJwk));
    const now = Date.now() / 1000;
    const keys = [
      { ...one, iat: now - 50, exp: now + 5000 },
      { ...two, iat: now - 100, exp: now + 4000 },
    ];
    const rotating = await watched(t, { keys: { keys } as JwkSet });
    const kids = [one?.kid, two?.kid];
    assert.deepEqual(rotating.take(), [{ type: 'keys.loaded', kids, keyId: one?.kid, nextExpiry: now + 4000 }]);
  });

  it('accepted, with the key, the level, whether it was known, and how long it took', async (t) => {
    const { port, take } = await watched(t);
    take();
    const headers = await bearer({ sub: 'ada' });
    for (const cached of [false, true, true]) {
      assert.equal((await ask(port, { headers })).status, 200);
      const accepted = { type: 'accepted', anonymous: false, signed: false, keyId: await kidOf(), cached };
      assert.deepEqual(timeless(take()), [accepted]);
    }
  });

  it('accepted for anonymous requests, and whether a token was known where isRevoked answers later', async (t) => {
    const { port, take } = await watched(t, { anonymous: true, isRevoked: async () => false });
    take();
    await ask(port);
    assert.deepEqual(timeless(take()), [{ type: 'accepted', anonymous: true }]);
    const headers = await bearer({ sub: 'ada' });
    for (const cached of [false, true]) {
      await ask(port, { headers });
      const accepted = { type: 'accepted', anonymous: false, signed: false, keyId: await kidOf(), cached };
      assert.deepEqual(timeless(take()), [accepted]);
    }
  });

  it('public for documents, preflights and public paths, with the status where the library answers', async (t) => {
    const resource = 'https://mcp.example/mcp';
    const cors = { origin: ['https://app.example'] };
    const { port, take } = await watched(t, { publicPaths: ['/open'], resource, openidConfiguration: true, cors });
    take();
    const jwks = '/.well-known/jwks.json';
    const preflight = { origin: 'https://app.example', 'access-control-request-method': 'POST' };
    const rows: [method: string, path: string, status: number | undefined, headers?: Record<string, string>][] = [
      ['GET', jwks, 200],
      ['HEAD', jwks, 200],
      ['OPTIONS', jwks, 204],
      ['POST', jwks, 405],
      ['GET', '/.well-known/oauth-protected-resource', 200],
      ['GET', '/.well-known/oauth-protected-resource/mcp', 200],
      ['GET', '/.well-known/openid-configuration', 200],
      ['OPTIONS', '/mcp', 204, preflight],
      ['GET', '/open', undefined],
      ['DELETE', '/open', undefined, { authorization: 'Bearer x' }],
    ];
    for (const [method, path, status, headers = {}] of rows) {
      const answer = await ask(port, { method, path, headers });
      assert.equal(answer.status, status ?? 200, `${method} ${path}`);
      assert.deepEqual(take(), [{ type: 'public', ...(status !== undefined && { status }) }], `${method} ${path}`);
    }
  });

  it('rejected, with the reason that the client is not told', async (t) => {
    const { port, take } = await watched(
      t,
      { requiredClaims: ['email'], audience: 'here', clockTolerance: 0, publicPaths: ['/open'] },
      (req, res) => {
        res.setHeader('mcp-session-id', 'hers').end();
        req.resume();
      },
    );
    take();
    const token = await mint({ email: 'e', aud: 'here' });
    const raw = (text: string, header?: { cty: string }): Promise<string> =>
      keyPair().then(({ publicJwk }) => compactEncrypt(Buffer.from(text), publicJwk, header));
    const stranger = (await keyPair('stranger')).publicJwk;
    const kid = await kidOf();
    type Row = [reason: string, status: number, headers: Record<string, string | string[]>, more?: object];
    const ours = { keyId: kid };
    const rows: Row[] = [
      ['no_token', 401, {}],
      ['malformed', 401, { authorization: 'Bearer x' }],
      ['malformed', 401, { authorization: 'Bearer' }],
      ['unknown_key', 401, { authorization: `Bearer ${compactEncrypt(Buffer.from('{}'), stranger)}` }],
      [
        'undecryptable',
        401,
        { authorization: `Bearer ${compactEncrypt(Buffer.from('{}'), { ...stranger, kid })}` },
        ours,
      ],
      ['undecryptable', 401, { authorization: `Bearer ${token.replace(/.{22}$/, 'A'.repeat(22))}` }, ours],
      ['unsafe_integer', 401, { authorization: `Bearer ${await raw('{"id":9007199254740993}')}` }, ours],
      ['cnf', 401, { authorization: `Bearer ${await raw('{"cnf":{"jkt":"x"}}')}` }, ours],
      ['signature', 401, { authorization: `Bearer ${await raw('{}', { cty: 'JWT' })}` }, ours],
      ['claims', 401, { authorization: `Bearer ${await raw('[]')}` }, ours],
      ['claims', 401, { authorization: `Bearer ${await raw('{"exp":"soon"}')}` }, ours],
      ['expired', 401, await bearer({ iat: 1, exp: 2 }), ours],
      ['not_yet_valid', 401, await bearer({ nbf: 4_000_000_000, exp: 4_000_000_001 }), ours],
      ['audience', 401, await bearer({ email: 'e', aud: 'there' }), ours],
      ['insufficient_scope', 403, await bearer({ aud: 'here' }), { ...ours, missing: ['email'] }],
      ['insufficient_scope', 403, await bearer({ aud: 'here', email: null }), { ...ours, missing: ['email'] }],
      ['session_id', 400, { authorization: `Bearer ${token}`, 'mcp-session-id': 'a b' }, ours],
      ['duplicate_field', 400, { 'mcp-session-id': ['a', 'b'], authorization: `Bearer ${token}` }, ours],
      ['duplicate_field', 400, { origin: ['https://a.example', 'https://a.example'] }],
      ['host', 403, { host: 'rebound.example' }],
      ['duplicate_token', 400, { authorization: ['Bearer x', 'Bearer y'] }],
      ['origin', 403, { origin: 'https://evil.example' }],
    ];
    for (const [reason, status, headers, more = {}] of rows) {
      assert.equal((await ask(port, { headers })).status, status, reason);
      assert.deepEqual(timeless(take()), [{ type: 'rejected', reason, status, pending: 0, ...more }], reason);
    }
    await ask(port, { headers: { authorization: `Bearer ${token}` } });
    take();
    await ask(port, {
      headers: { ...(await bearer({ sub: 'bob', email: 'e', aud: 'here' })), 'mcp-session-id': 'hers' },
    });
    const session = { type: 'rejected', reason: 'session', status: 404, pending: 0, keyId: kid };
    assert.deepEqual(timeless(take()).at(-1), session);
  });

  it('rejected with the names of missing scopes and claims alone', async (t) => {
    const { port, take } = await watched(t, { requiredClaims: ['email'], requiredScopes: ['read', 'write'] });
    take();
    const rejected = { type: 'rejected', reason: 'insufficient_scope', status: 403, pending: 0, keyId: await kidOf() };
    for (const [claims, missing] of [
      [{ scope: 'read' }, ['email', 'write']],
      [{ email: 'e' }, ['read', 'write']],
      [{ scope: ['read', 'write'] }, ['email']],
    ] as const) {
      await ask(port, { headers: await bearer(claims) });
      assert.deepEqual(timeless(take()), [{ ...rejected, missing }]);
    }
  });

  it('failed for a fault of our own, which is 500 and a warning, without the text of what was thrown', async (t) => {
    let broken = false;
    const now = (): number => {
      if (broken) throw new RangeError('SECRET-OF-A-CLOCK');
      return Date.now() / 1000;
    };
    const warnings: Error[] = [];
    const collectWarning = (warning: Error): void => void warnings.push(warning);
    process.on('warning', collectWarning);
    t.after(() => process.off('warning', collectWarning));
    const { port, take } = await watched(t, { now });
    take();
    const headers = await bearer({ sub: 'ada' });
    broken = true;
    const { status, body } = await ask(port, { headers });
    const answer = { error: 'server_error', error_description: 'The server failed to judge this request' };
    assert.deepEqual([status, JSON.parse(body)], [500, answer]);
    broken = false;
    const [failed, ...others] = take().map(({ durationMs, ...rest }) => {
      assert(isDuration(durationMs));
      return rest;
    });
    assert.deepEqual([failed, others], [{ type: 'failed', reason: 'failed', status: 500, pending: 0 }, []]);
    await until(() => warnings.some((warning) => Object(warning).code === 'MCP_AUTH_FAILED'));
    for (const { message } of warnings) assert.doesNotMatch(message, /SECRET-OF-A-CLOCK/);
    assert.equal((await ask(port, { headers })).status, 200);
  });

  const ISSUERS =
    'rejected for a wrong issuer, signature or unreachable keys, and how the keys of the issuer were read';
  it(ISSUERS, async (t) => {
    const { publicKey, privateKey } = newPair('ed25519');
    const jwks = { keys: [{ ...publicKey.export({ format: 'jwk' }), kid: 'k', alg: 'EdDSA', use: 'sig' }] };
    const key = { ...privateKey.export({ format: 'jwk' }), kid: 'k' } as Jwk & { d: string };
    let answer: (() => string) | undefined = () => 'no JSON';
    const { url } = await serve(t, (_req, res) => {
      if (answer) res.end(answer());
      else res.destroy();
    });
    let clock = Date.now() / 1000;
    const { port, take } = await watched(t, {
      audience: 'here',
      trustedIssuers: [{ issuer: 'https://idp.example', jwks: new URL(url) }],
      now: () => clock,
    });
    take();
    const { publicJwk } = await keyPair();
    const send = async (issuer: string, signer = key): Promise<number> => {
      const token = await encryptToken({ sub: randomBytes(4).toString('hex') }, publicJwk, {
        sign: { key: signer, issuer, audience: 'here' },
        expiresIn: 100_000,
      });
      return (await ask(port, { headers: { authorization: `Bearer ${token}` } })).status;
    };
    const issuer = 'https://idp.example';
    const keyId = await kidOf();
    const failure = (code: string, cause = code): object => ({
      type: 'issuer.failed',
      issuer,
      code,
      message: `The keys of the issuer ${issuer} cannot be read from ${url}/: ${cause}`,
    });
    const unavailable = { type: 'rejected', reason: 'issuer_unavailable', status: 503, pending: 0, keyId };
    assert.equal(await send(issuer), 503);
    const cause = 'is not a JWK Set, an object with an array "keys"';
    assert.deepEqual(timeless(take()), [failure('malformed', cause), unavailable]);
    answer = undefined;
    clock += 60;
    assert.equal(await send(issuer), 503);
    assert.deepEqual(timeless(take()), [failure('UND_ERR_SOCKET'), unavailable]);
    answer = () => JSON.stringify(jwks);
    clock += 60;
    assert.equal(await send(issuer), 200);
    assert.deepEqual(timeless(take()), [
      { type: 'issuer.fetched', issuer },
      { type: 'accepted', anonymous: false, signed: true, issuer, keyId, cached: false },
    ]);
    assert.equal(await send('https://other.example'), 401);
    assert.deepEqual(timeless(take()), [{ type: 'rejected', reason: 'issuer', status: 401, pending: 0, keyId }]);
    const { privateKey: foreign } = newPair('ed25519');
    assert.equal(await send(issuer, { ...foreign.export({ format: 'jwk' }), kid: 'k' } as Jwk & { d: string }), 401);
    assert.deepEqual(timeless(take()), [{ type: 'rejected', reason: 'signature', status: 401, pending: 0, keyId }]);
  });

  it('overloaded, with how many are waiting', async (t) => {
    const { port, take } = await watched(t, { maxPending: 0 });
    take();
    const release = hold(t);
    const lanes = Math.max(1, Math.min(availableParallelism() + 1, Number(process.env['UV_THREADPOOL_SIZE'] ?? 4) - 1));
    const all = await Promise.all(Array.from({ length: lanes + 1 }, (_, index) => bearer({ index })));
    const waiting = all.slice(1).map((headers) => ask(port, { headers }));
    await until(() => rsa.running === lanes);
    assert.equal((await ask(port, { headers: all[0] ?? {} })).status, 503);
    const overloaded = { type: 'overloaded', reason: 'overloaded', status: 503, pending: lanes };
    assert.deepEqual(timeless(take()), [overloaded]);
    release();
    await Promise.all(waiting);
    const accepted = { type: 'accepted', anonymous: false, signed: false, keyId: await kidOf(), cached: false };
    assert.deepEqual(
      timeless(take()),
      waiting.map(() => accepted),
    );
  });

  it('keys.loaded and keys.failed as the file changes, and rejected when no key is valid', async (t) => {
    const folder = mkdtempSync(join(tmpdir(), 'mcp-auth-test-'));
    t.after(() => rmSync(folder, { recursive: true }));
    const file = join(folder, 'keys.json');
    const write = (text: string): void => writeFileSync(file, text, { mode: 0o600 });
    const first = (await serverKeys()).keys[0];
    const next = (await keyPair('next')).privateJwk;
    write(JSON.stringify({ keys: [first] }));
    const { port, events, take } = await watched(t, { keyFile: file });
    take();
    const change = async (act: () => void): Promise<object[]> => {
      act();
      await until(() => events.length > 0);
      return timeless(take());
    };
    const loaded = (...kids: (string | undefined)[]): object => ({
      type: 'keys.loaded',
      kids,
      ...(kids[0] && { keyId: kids[0] }),
    });
    const both = JSON.stringify({ keys: [next, first] });
    assert.deepEqual(await change(() => write(both)), [loaded(next.kid, first?.kid)]);
    const malformed = `${file}: is not a JSON object in UTF-8; generate keys with "mcp-auth-middleware generate"`;
    assert.deepEqual(await change(() => write('{"keys":')), [
      { type: 'keys.failed', code: 'malformed', message: malformed },
    ]);
    const remedy = 'make one with "mcp-auth-middleware generate", or set MCP_KEY_FILE_PATH or keyFile';
    const missing = { type: 'keys.failed', code: 'missing', message: `${file}: no such key file; ${remedy}` };
    assert.deepEqual(await change(() => rmSync(file)), [missing]);
    assert.deepEqual(await change(() => write(JSON.stringify({ keys: [{ ...first, exp: 1 }] }))), [loaded()]);
    await ask(port, { headers: await bearer({ sub: 'a' }) });
    assert.deepEqual(timeless(take()), [{ type: 'rejected', reason: 'no_key', status: 503, pending: 0 }]);
  });

  it('the same through authMiddleware and withAuthFetch', async (t) => {
    const keys = await serverKeys();
    const events: AuthEvent[] = [];
    const onEvent = (event: AuthEvent): void => {
      events.push(event);
    };
    const middleware = authMiddleware({ keys, onEvent });
    const handler = withAuthFetch(() => new Response(), { keys, onEvent });
    const { port } = await serve(t, (req, res) => middleware(req, res, () => res.end()));
    const headers = await bearer({ sub: 'a' });
    events.length = 0;
    await ask(port, { headers });
    await handler(new Request('http://a/', { headers }));
    await ask(port);
    await handler(new Request('http://a/'));
    const accepted = { type: 'accepted', anonymous: false, signed: false, keyId: await kidOf(), cached: false };
    const rejected = { type: 'rejected', reason: 'no_token', status: 401, pending: 0 };
    assert.deepEqual(timeless(events), [accepted, accepted, rejected, rejected]);
  });

  it('of a shared verifier’s keys to all who listen', async () => {
    const verifier = new JWETokenVerifier({ keys: await serverKeys() });
    const types: string[] = [];
    for (const name of ['a', 'b'])
      withAuth(() => {}, {
        verifier,
        onEvent: ({ type }) => {
          types.push(`${name} ${type}`);
        },
      });
    assert.deepEqual(types, ['a keys.loaded', 'b keys.loaded']);
  });
});

/** What is published on the channel until the scope ends, but for files and issuers of earlier tests that are gone. */
function published(scope: Scope): AuthEvent[] {
  const messages: AuthEvent[] = [];
  const listen = (message: unknown): void => {
    const event = message as AuthEvent;
    if (!event.type.endsWith('.failed')) messages.push(event);
  };
  subscribe('mcp-auth-middleware', listen);
  scope.after(() => unsubscribe('mcp-auth-middleware', listen));
  return messages;
}

describe('diagnostics_channel', () => {
  /** Lets everything happen that has an event of a request. */
  async function everything(port: number): Promise<void> {
    const headers = await bearer({ sub: 'ada', scope: 'read' });
    for (const more of [headers, headers, {}, { authorization: 'Bearer x' }, await bearer({ sub: 'ada' })])
      await ask(port, { headers: more });
    for (const path of ['/.well-known/jwks.json', '/open']) await ask(port, { path });
  }
  const options: AuthOptions = { requiredScopes: ['read'], publicPaths: ['/open'] };
  const types = ['accepted', 'accepted', 'rejected', 'rejected', 'rejected', 'public', 'public'];

  it('gets the very objects that listeners get, in their order, each once', async (t) => {
    const messages = published(t);
    const { port, events } = await watched(t, options);
    assert.deepEqual(
      messages.map(({ type }) => type),
      ['keys.loaded'],
      'one load is one message',
    );
    messages.length = events.length = 0;
    await everything(port);
    assert.deepEqual(
      messages.map(({ type }) => type),
      types,
    );
    assert.equal(messages.length, events.length);
    for (const [index, message] of messages.entries()) assert.equal(message, events[index]);
  });

  it('gets them without any listener, of verifiers alone too, and from the moment of the subscription', async (t) => {
    const { port } = await guard(t, options);
    const headers = await bearer({ sub: 'ada', scope: 'read' });
    await ask(port, { headers });
    const messages = published(t);
    await everything(port);
    assert.deepEqual(
      messages.map(({ type }) => type),
      types,
    );
    messages.length = 0;
    new JWETokenVerifier({ keys: await serverKeys() });
    const kid = await kidOf();
    assert.deepEqual(messages, [{ type: 'keys.loaded', kids: [kid], keyId: kid }]);
  });

  it('gets one message of a key change, however many share the verifier', async (t) => {
    const now = Math.floor(Date.now() / 1000);
    let clock = now;
    const [one, two] = await Promise.all(['one', 'two'].map(async (name) => (await keyPair(name)).privateJwk));
    assert(one && two);
    const keys = {
      keys: [
        { ...one, iat: now - 5 },
        { ...two, nbf: now + 100 },
      ],
    };
    const verifier = new JWETokenVerifier({ keys, now: () => clock });
    const heard: AuthEvent[] = [];
    const onEvent = (event: AuthEvent): unknown => heard.push(event);
    const listeners = [1, 2, 3].map(() => withAuth(() => {}, { verifier, onEvent }));
    heard.length = 0;
    const all = published(t);
    clock = now + 100;
    await until(() => all.length > 0);
    const active = { type: 'keys.active', kids: [one.kid, two.kid], keyId: two.kid };
    assert.deepEqual(all, [active]);
    assert.deepEqual(heard, [active, active, active]);
    assert.equal(new Set([...heard, ...all]).size, 1, 'one object for all');
    assert.equal(listeners.length, 3); // the timer keeps no verifier that nobody holds
  });

  it('is told outside the user’s context', async (t) => {
    const seen: unknown[] = [];
    const look = (): void => void seen.push(getUser()['sub'], getAuth());
    const listen = (): void => {
      look();
      queueMicrotask(look);
    };
    subscribe('mcp-auth-middleware', listen);
    t.after(() => unsubscribe('mcp-auth-middleware', listen));
    const inner = withAuth((_req, res) => void res.end(), { keys: await serverKeys() });
    const { port } = await guard(t, {}, (req, res) => void inner(req, res)); // called from inside ada's context
    await ask(port, { headers: await bearer({ sub: 'ada' }) });
    await until(() => seen.length >= 8);
    assert.deepEqual(new Set(seen), new Set([undefined]));
  });

  it('gets objects that are frozen to the ground', async (t) => {
    const messages = published(t);
    const { port } = await watched(t, options);
    await everything(port);
    assert.ok(messages.some(({ kids }) => kids) && messages.some(({ missing }) => missing));
    for (const message of messages) {
      assert.ok(Object.isFrozen(message), message.type);
      for (const value of Object.values(message)) assert.ok(Object.isFrozen(value), message.type);
    }
  });
});

describe('a listener', () => {
  it('is called outside the user’s context, and so is what it starts', async (t) => {
    const seen: unknown[] = [];
    const look = (): void => {
      seen.push(getUser()['sub'], getAuth());
    };
    const keys = await serverKeys();
    const inner = withAuth(
      (_req, res) => {
        res.end();
      },
      {
        keys,
        onEvent: () => {
          look();
          setTimeout(look, 1);
          queueMicrotask(look);
        },
      },
    );
    const { port } = await guard(t, {}, (req, res) => {
      void inner(req, res);
    }); // called from inside ada's context
    const headers = await bearer({ sub: 'ada' });
    for (let index = 0; index < 3; index += 1) await ask(port, { headers });
    await new Promise((resolve) => {
      setTimeout(resolve, 20);
    });
    assert(seen.length >= 18, String(seen.length));
    assert.deepEqual(new Set(seen), new Set([undefined]));
  });

  it('that fails in any way is warned about once, and changes no answer', async () => {
    const script = `
      import { createServer } from 'node:http';
      import { withAuth } from 'mcp-auth-middleware';
      const [how] = process.argv.slice(1);
      const secret = new Error('LISTENER-SECRET');
      const onEvent = {
        throws() { throw secret; },
        throwsNothing() { throw undefined; },
        async rejects() { throw secret; },
        rejectsLater() { return new Promise((_, reject) => setTimeout(reject, 1, secret)); },
        thenable() { return { get then() { throw secret; } }; },
        thenThrows() { return { then() { throw secret; } }; },
        never() { return new Promise(() => {}); },
      }[how];
      const warnings = [];
      process.on('warning', ({ code, message }) => { warnings.push([code, message]); });
      process.on('unhandledRejection', (error) => { console.log('unhandledRejection', error); });
      const listener = withAuth((req, res) => res.end('reached'), { keys: JSON.parse(process.env.TEST_KEYS), onEvent });
      const server = createServer(listener).listen(0, '127.0.0.1', async () => {
        const url = 'http://127.0.0.1:' + server.address().port;
        const answers = [];
        for (const authorization of [process.env.TEST_BEARER, process.env.TEST_BEARER, 'Bearer x', 'Basic x']) {
          const answer = await fetch(url, { headers: { authorization } });
          answers.push(answer.status, (await answer.text()).slice(0, 7));
        }
        await new Promise((resolve) => setTimeout(resolve, 20));
        console.log(JSON.stringify([answers, warnings.filter(([code]) => code !== 'MCP_AUTH_SELF_ASSERTED')]));
        process.exit();
      });`;
    const env = {
      NODE_OPTIONS: undefined,
      TEST_KEYS: JSON.stringify(await serverKeys()),
      TEST_BEARER: (await bearer({ sub: '1' })).authorization,
    };
    await Promise.all(
      ['throws', 'throwsNothing', 'rejects', 'rejectsLater', 'thenable', 'thenThrows', 'never'].map(async (how) => {
        const { code, stdout, stderr } = await run(process.execPath, ['--input-type=module', '-e', script, how], {
          cwd: root,
          env,
        });
        assert.equal(code, 0, `${how}: ${stderr}`);
        const [answers, warnings] = JSON.parse(stdout);
        assert.deepEqual(answers, [200, 'reached', 200, 'reached', 401, '{"error', 401, '{"error'], how);
        assert.deepEqual(
          warnings.map(([warning]: [string]) => warning),
          how === 'never' ? [] : ['MCP_AUTH_ON_EVENT'],
          how,
        );
        assert.doesNotMatch(stdout + stderr, /LISTENER-SECRET|unhandledRejection/, how);
      }),
    );
  });

  it('cannot change an event for another one, nor the answer through it', async (t) => {
    const { port } = await guard(t, {
      onEvent: (event) => {
        try {
          Object.assign(event, { type: 'accepted', status: 200, reason: 'x' });
        } catch {
          /* frozen is fine */
        }
      },
    });
    assert.equal((await ask(port, { headers: { authorization: 'Bearer x' } })).status, 401);
  });
});

describe('nothing secret', () => {
  it('is in any event, warning, error, answer or on stderr', async (t) => {
    // A process of its own that does all the wrong things, and prints every word the library says.
    const script = `
      import { createServer } from 'node:http';
      import { subscribe } from 'node:diagnostics_channel';
      import { inspect } from 'node:util';
      import { writeFileSync } from 'node:fs';
      import { compactDecrypt, compactEncrypt, encryptToken, JWETokenVerifier, withAuth } from 'mcp-auth-middleware';
      const input = await new Promise((resolve) => {
        let text = '';
        process.stdin.on('data', (chunk) => { text += chunk; }).on('end', () => resolve(text));
      });
      const { keys, tokens, headers, bad, file } = JSON.parse(input);
      const say = (what, value) => console.log(what, inspect(value, { depth: 9, showHidden: true }),
        value instanceof Error ? [value.stack, value.cause, JSON.stringify(value), Object.values(value)] : '');
      process.on('warning', (warning) => say('warning', warning));
      subscribe('mcp-auth-middleware', (event) => say('channel', event));
      const attempt = async (what, action) => { try { await action(); } catch (error) { say(what, error); } };
      writeFileSync(file, JSON.stringify(keys), { mode: 0o644 });
      let clock = Date.now() / 1000;
      const options = {
        keyFile: file,
        audience: 'AUDIENCE-OPTION',
        requiredClaims: ['email'],
        isRevoked: ({ user }) => { if (user.name === 'CLAIM-VALUE-R') throw new Error(user.name); return false; },
        onEvent: (event) => say('event', event),
        now: () => clock,
      };
      const server = createServer(withAuth((req, res) => res.end(), options)).listen(0, '127.0.0.1', async () => {
        const verifier = new JWETokenVerifier({ keys });
        for (const token of tokens) {
          const all = { ...headers, authorization: 'Bearer ' + token };
          const answer = await fetch('http://127.0.0.1:' + server.address().port, { headers: all });
          say('answer', [answer.status, [...answer.headers], await answer.text()]);
          await attempt('verifyToken', () => verifier.verifyToken(token));
          await attempt('compactDecrypt', () => compactDecrypt(token, keys));
          await attempt('compactDecrypt', () => compactDecrypt(token + 'x', keys));
        }
        for (const set of bad) {
          await attempt('keys', () => new JWETokenVerifier({ keys: set }));
          await attempt('compactDecrypt', () => compactDecrypt(tokens[0], set));
          await attempt('encryptToken', () => encryptToken({ sub: 'CLAIM-VALUE-1' }, set));
          await attempt('encryptToken', () => encryptToken({ sub: 'CLAIM-VALUE-1' }, { keys: [set] }));
          if (!Array.isArray(set.keys ?? set))
            await attempt('compactEncrypt', () => compactEncrypt(Buffer.from('CLAIM-VALUE-1'), set));
          const sign = { key: set.keys?.[0] ?? set, issuer: 'i', audience: 'a' };
          await attempt('sign', () => encryptToken({ sub: 'CLAIM-VALUE-1' }, { keys: [] }, { sign }));
          writeFileSync(file, JSON.stringify(set));
          await attempt('keyFile', () => new JWETokenVerifier({ keyFile: file }));
          clock += 11; // so that the request looks first
          await fetch('http://127.0.0.1:' + server.address().port);
        }
        const recipient = { kty: 'RSA', n: keys.keys[0].n, e: 'AQAB' };
        await attempt('too long', () => encryptToken({ sub: 'CLAIM-VALUE-1'.repeat(2000) }, recipient));
        await attempt('no claims', () => encryptToken('CLAIM-VALUE-1', recipient));
        process.exit();
      });`;
    const { privateJwk, publicJwk } = await keyPair();
    const other = (await keyPair('stranger')).privateJwk;
    const claims = {
      sub: 'CLAIM-VALUE-1',
      email: 'CLAIM-VALUE-2',
      name: 'CLAIM-VALUE-3',
      iss: 'CLAIM-VALUE-4',
      jti: 'CLAIM-VALUE-5',
      aud: 'CLAIM-VALUE-6',
      scope: 'CLAIM-VALUE-7',
    };
    const sealed = (plaintext: object | string, more = {}): string =>
      compactEncrypt(Buffer.from(typeof plaintext === 'string' ? plaintext : JSON.stringify(plaintext)), {
        ...publicJwk,
        ...more,
      });
    const good = await mint({ ...claims, aud: 'AUDIENCE-OPTION' });
    const tokens = [
      good,
      await mint(claims),
      await mint({ ...claims, email: undefined, aud: 'AUDIENCE-OPTION' }),
      await mint({ ...claims, name: 'CLAIM-VALUE-R', aud: 'AUDIENCE-OPTION' }),
      sealed({ ...claims, cnf: { jkt: 'CLAIM-VALUE-9' } }),
      sealed('{"sub":"CLAIM-VALUE-1","id":12345678901234567890}'),
      await mint({ ...claims, iat: 1, exp: 2 }),
      await mint({ ...claims, nbf: 4_000_000_000 }),
      sealed({ ...claims, exp: 'CLAIM-VALUE-8' }),
      sealed('CLAIM-VALUE-1'),
      sealed('{"sub":"CLAIM-VALUE-1",'),
      sealed(JSON.stringify(claims).repeat(2)),
      sealed({ ...claims, aud: { 'CLAIM-VALUE-6': 1 } }),
      good.slice(0, -2),
      `${good}.x`,
      good.replace(/^[^.]+/, (head) => `${head}A`),
      good.split('.').reverse().join('.'),
      sealed(claims, { kid: 'KID-OF-TOKEN' }),
      compactEncrypt(Buffer.from(JSON.stringify(claims)), (await keyPair('stranger')).publicJwk),
    ];
    const { d, p, q, dp, dq, qi } = privateJwk;
    const bad: unknown[] = [
      { keys: [{ ...privateJwk, d: other.d }] },
      { keys: [{ ...privateJwk, p: other.p, q: other.q }] },
      { keys: [{ ...privateJwk, p: q, q: p }] },
      { keys: [{ ...privateJwk, qi: dp }] },
      { keys: [{ ...privateJwk, n: other.n }] },
      { keys: [{ ...privateJwk, d: `${d}=` }] },
      { keys: [{ ...privateJwk, dq: 7 }] },
      { keys: [{ ...privateJwk, e: 'AQAC' }] },
      { keys: [{ ...privateJwk, oth: [{ r: p, d, t: q }] }] },
      { keys: [privateJwk, privateJwk] },
      { keys: [{ ...privateJwk, kty: d }] },
      { keys: [{ ...privateJwk, alg: d }] },
      { keys: [{ ...privateJwk, use: d }] },
      { keys: [{ ...privateJwk, kid: 7 }] },
      { keys: [{ ...privateJwk, key_ops: [d] }] },
      { keys: [{ ...privateJwk, exp: d }] },
      { keys: [{ kty: 'RSA', n: publicJwk.n, e: 'AQAB', d }] },
      { keys: [d] },
      { keys: d },
      { [String(d)]: 1 },
      [d],
      { ...privateJwk, kty: 'oct', k: d },
      { keys: [{ kty: 'oct', k: d }] },
      privateJwk,
      { ...privateJwk, alg: 'RS256', use: 'sig', n: other.n },
    ];
    const folder = mkdtempSync(join(tmpdir(), 'mcp-auth-test-'));
    t.after(() => rmSync(folder, { recursive: true }));
    const input = JSON.stringify({
      keys: await serverKeys(),
      tokens,
      headers: { 'x-test': 'y', 'mcp-session-id': 'CLAIM-VALUE-SESSION' },
      bad,
      file: join(folder, 'keys.json'),
    });
    const { code, stdout, stderr } = await run(process.execPath, ['--input-type=module', '-e', script], {
      cwd: root,
      env: { NODE_OPTIONS: undefined },
      input,
    });
    assert.equal(code, 0, stderr);
    const said = stdout + stderr;
    // First, that it did talk: else nothing below could fail.
    for (const word of [
      'event',
      'channel',
      'revocation_unavailable',
      'unsafe_integer',
      'cnf',
      'warning',
      'answer',
      'verifyToken',
      'compactDecrypt',
      'encryptToken',
      'keyFile',
      'KeyError',
      'AuthError',
      'MCP_AUTH_KEY_FILE_MODE',
      'MCP_AUTH_SELF_ASSERTED',
      'keys.failed',
      'accepted',
      'rejected',
      'insufficient_scope',
      'TypeError',
    ]) {
      assert(said.includes(word), `${word} in ${said.slice(0, 2000)}`);
    }
    assert.doesNotMatch(said, /CLAIM-VALUE|KID-OF-TOKEN/);
    assert.doesNotMatch(said, /openssl|OSSL|ERR_CRYPTO|ERR_OSSL|bad decrypt|error:[0-9A-F]{8}/i);
    assert.doesNotMatch(said, /DataError|OperationError|Unsupported state|SyntaxError|JSON at position/i);
    const pieces = [
      d,
      p,
      q,
      dp,
      dq,
      qi,
      other.d,
      other.p,
      other.q,
      ...tokens.flatMap((token) =>
        token
          .split('.')
          .slice(1)
          .filter((part) => part.length > 20),
      ),
    ];
    assert(pieces.length > 40);
    for (const piece of pieces) {
      assert(piece);
      const found = said
        .split('\n')
        .find((line) => line.includes(piece.slice(0, 20)) || line.includes(piece.slice(-20)));
      assert.equal(found, undefined);
    }
    for (const token of tokens)
      assert(!said.includes(createHash('sha256').update(token).digest('base64url')), 'not even a hash of it');
  });

  it('is in an AuthError: it has no cause, and says what the client is told', async () => {
    const verifier = new JWETokenVerifier({ keys: await serverKeys() });
    const good = await mint({ sub: 'a' });
    for (const token of [
      'x',
      `${good}x`,
      `${good.slice(0, -22)}${'A'.repeat(22)}`,
      compactEncrypt(Buffer.from('{'), (await keyPair()).publicJwk),
      7 as unknown as string,
    ]) {
      for (const verify of [() => verifier.verifyToken(token), () => verifier.authenticate(token)]) {
        await assert.rejects(
          verify(),
          (error) =>
            error instanceof AuthError &&
            error.message === 'The access token is invalid' &&
            error.code === 'invalid_token' &&
            error.status === 401 &&
            error.cause === undefined &&
            !('cause' in error),
        );
      }
    }
    await assert.rejects(
      compactDecrypt('x', await serverKeys()),
      (error) => error instanceof AuthError && !('cause' in error),
    );
  });
});
