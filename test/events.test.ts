// What operators learn: every event there is, nothing secret in any of them, and no effect on any answer.
import assert from 'node:assert/strict';
import { createHash, generateKeyPairSync, randomBytes } from 'node:crypto';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
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
  JWETokenVerifier,
  withAuth,
  withAuthFetch,
} from 'mcp-auth-middleware';
import { keyPair, root, run, type Scope, serve } from './support/support.js';
import { ask, bearer, exchange, guard, mint, serverKeys } from './support/wire.js';

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
    if (rest.type === 'accepted' || rest.type === 'rejected' || rest.type === 'overloaded')
      assert(isDuration(durationMs), String(durationMs));
    return rest;
  });
const kidOf = async (): Promise<string> => (await keyPair()).publicJwk.kid ?? '';

describe('an event says', () => {
  it('keys.loaded at construction, which key is published', async (t) => {
    const { take } = await watched(t);
    assert.deepEqual(take(), [{ type: 'keys.loaded', keyId: await kidOf() }]);
  });

  it('accepted, with the key, whether it was known, and how long it took', async (t) => {
    const { port, take } = await watched(t);
    take();
    const headers = await bearer({ sub: 'ada' });
    for (const cached of [false, true, true]) {
      assert.equal((await ask(port, { headers })).status, 200);
      assert.deepEqual(timeless(take()), [{ type: 'accepted', keyId: await kidOf(), cached }]);
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
    const rows: [reason: string, status: number, headers: Record<string, string | string[]>][] = [
      ['no_token', 401, {}],
      ['malformed', 401, { authorization: 'Bearer x' }],
      ['malformed', 401, { authorization: 'Bearer' }],
      ['unknown_key', 401, { authorization: `Bearer ${compactEncrypt(Buffer.from('{}'), stranger)}` }],
      [
        'undecryptable',
        401,
        { authorization: `Bearer ${compactEncrypt(Buffer.from('{}'), { ...stranger, kid: await kidOf() })}` },
      ],
      ['undecryptable', 401, { authorization: `Bearer ${token.replace(/.{22}$/, 'A'.repeat(22))}` }],
      ['signature', 401, { authorization: `Bearer ${await raw('{}', { cty: 'JWT' })}` }],
      ['claims', 401, { authorization: `Bearer ${await raw('[]')}` }],
      ['claims', 401, { authorization: `Bearer ${await raw('{"exp":"soon"}')}` }],
      ['expired', 401, await bearer({ iat: 1, exp: 2 })],
      ['not_yet_valid', 401, await bearer({ nbf: 4_000_000_000, exp: 4_000_000_001 })],
      ['audience', 401, await bearer({ email: 'e', aud: 'there' })],
      ['insufficient_scope', 403, await bearer({ aud: 'here' })],
      ['duplicate_token', 400, { authorization: ['Bearer x', 'Bearer y'] }],
      ['origin', 403, { origin: 'https://evil.example' }],
    ];
    for (const [reason, status, headers] of rows) {
      assert.equal((await ask(port, { headers })).status, status, reason);
      assert.deepEqual(timeless(take()), [{ type: 'rejected', reason, status, pending: 0 }]);
    }
    await ask(port, { headers: { authorization: `Bearer ${token}` } });
    take();
    await ask(port, {
      headers: { ...(await bearer({ sub: 'bob', email: 'e', aud: 'here' })), 'mcp-session-id': 'hers' },
    });
    assert.deepEqual(timeless(take()).at(-1), { type: 'rejected', reason: 'session', status: 404, pending: 0 });
    // Nothing to report: nobody was let in or kept out.
    for (const path of ['/.well-known/jwks.json', '/open']) await ask(port, { path });
    assert.deepEqual(take(), []);
  });

  const ISSUERS =
    'rejected for a wrong issuer, signature or unreachable keys, and how the keys of the issuer were read';
  it(ISSUERS, async (t) => {
    const { publicKey, privateKey } = generateKeyPairSync('ed25519');
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
    assert.equal(await send(issuer), 503);
    const [failed, ...others] = timeless(take());
    assert.deepEqual(failed, { type: 'issuer.failed', issuer, reason: 'malformed' });
    assert.deepEqual(others.at(-1), { type: 'rejected', reason: 'issuer_unavailable', status: 503, pending: 0 });
    answer = undefined;
    clock += 60;
    assert.equal(await send(issuer), 503);
    assert.deepEqual(timeless(take())[0], { type: 'issuer.failed', issuer, reason: 'unreachable' });
    answer = () => JSON.stringify(jwks);
    clock += 60;
    assert.equal(await send(issuer), 200);
    assert.deepEqual(timeless(take()), [
      { type: 'issuer.fetched', issuer },
      { type: 'accepted', keyId: await kidOf(), cached: false },
    ]);
    assert.equal(await send('https://other.example'), 401);
    assert.deepEqual(timeless(take()), [{ type: 'rejected', reason: 'issuer', status: 401, pending: 0 }]);
    const { privateKey: foreign } = generateKeyPairSync('ed25519');
    assert.equal(await send(issuer, { ...foreign.export({ format: 'jwk' }), kid: 'k' } as Jwk & { d: string }), 401);
    assert.deepEqual(timeless(take()), [{ type: 'rejected', reason: 'signature', status: 401, pending: 0 }]);
  });

  it('overloaded, with how many are waiting', async (t) => {
    const { port, take } = await watched(t, { concurrency: 1, maxPending: 0 });
    take();
    const [one, two] = [await bearer({ sub: 'a' }), await bearer({ sub: 'b' })];
    await exchange(
      port,
      `GET / HTTP/1.1\r\nHost: a\r\nAuthorization: ${one.authorization}\r\n\r\n` +
        `GET / HTTP/1.1\r\nHost: a\r\nAuthorization: ${two.authorization}\r\nConnection: close\r\n\r\n`,
    );
    assert.deepEqual(timeless(take()), [
      { type: 'overloaded', reason: 'overloaded', status: 503, pending: 1 },
      { type: 'accepted', keyId: await kidOf(), cached: false },
    ]);
  });

  it('keys.loaded and keys.failed as the file changes, and rejected when no key is valid', async (t) => {
    const folder = mkdtempSync(join(tmpdir(), 'mcp-auth-test-'));
    t.after(() => rmSync(folder, { recursive: true }));
    const file = join(folder, 'keys.json');
    const write = (text: string): void => writeFileSync(file, text, { mode: 0o600 });
    let clock = Date.now() / 1000;
    const first = (await serverKeys()).keys[0];
    const next = (await keyPair('next')).privateJwk;
    write(JSON.stringify({ keys: [first] }));
    const { port, take } = await watched(t, { keyFile: file, now: () => clock });
    take();
    const look = async (headers = {}): Promise<object[]> => {
      clock += 6;
      await ask(port, { headers });
      return timeless(take());
    };
    const refused = { type: 'rejected', reason: 'no_token', status: 401, pending: 0 };
    assert.deepEqual(await look(), [refused], 'an unchanged file is no event');
    write(JSON.stringify({ keys: [next, first] }));
    assert.deepEqual(await look(), [{ type: 'keys.loaded', keyId: next.kid }, refused]);
    write('{"keys":');
    assert.deepEqual(await look(), [{ type: 'keys.failed', reason: 'malformed' }, refused]);
    rmSync(file);
    assert.deepEqual(await look(), [{ type: 'keys.failed', reason: 'missing' }, refused]);
    write(JSON.stringify({ keys: [{ ...first, exp: 1 }] }));
    const [loaded, rejected] = await look(await bearer({ sub: 'a' }));
    assert.deepEqual(
      [loaded, rejected],
      [{ type: 'keys.loaded' }, { type: 'rejected', reason: 'no_key', status: 503, pending: 0 }],
    );
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
    const accepted = { type: 'accepted', keyId: await kidOf(), cached: false };
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
      const attempt = async (what, action) => { try { await action(); } catch (error) { say(what, error); } };
      writeFileSync(file, JSON.stringify(keys), { mode: 0o644 });
      let clock = Date.now() / 1000;
      const options = {
        keyFile: file,
        audience: 'AUDIENCE-OPTION',
        requiredClaims: ['email'],
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
          clock += 6;
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
      headers: { 'x-test': 'y' },
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
