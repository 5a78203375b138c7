// Trusted issuers by URL: how their key sets are fetched, kept, refreshed and lost, against a real server and with a
// clock of our own.
import assert from 'node:assert/strict';
import type { KeyObject } from 'node:crypto';
import { once } from 'node:events';
import { lookup } from 'node:dns/promises';
import type { RequestListener } from 'node:http';
import { connect, createServer as listenTcp } from 'node:net';
import { availableParallelism } from 'node:os';
import { describe, it, test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { gzipSync } from 'node:zlib';
import {
  type AuthEvent,
  type AuthOptions,
  encryptToken,
  getAuth,
  getUser,
  type Jwk,
  type JwkSet,
  JWETokenVerifier,
  KeyError,
  type PrivateSigningJwk,
  type TrustedIssuer,
  withAuth,
} from 'mcp-auth-middleware';
import { collect, used } from './support/memory.js';
import { countRsa } from './support/rsa.js';
import { keyPair, outcome, type Scope, serve, until } from './support/support.js';
import { newPair, seal, SIGNERS, signJws } from './support/tokens.js';

const NOW = 1_800_000_000;
const POOL = Number(process.env['UV_THREADPOOL_SIZE'] ?? 4);
const AUDIENCE = 'https://mcp.example';
const { privateJwk, publicJwk } = await keyPair();

interface SigningKey {
  privateKey: PrivateSigningJwk;
  publicKey: Jwk;
}
function signingKey(kid: string | undefined): SigningKey {
  const { kty, crv, x, d } = newPair('ed25519').privateKey.export({ format: 'jwk' });
  if (!kty || !d) throw new Error('an Ed25519 key has these');
  return { privateKey: { kty, crv, x, d, kid }, publicKey: { kty, crv, x, kid, alg: 'EdDSA', use: 'sig' } };
}
const [first, second, third] = [signingKey('first'), signingKey('second'), signingKey('third')];

const mint = (issuer: string, { privateKey }: SigningKey, sub = 'alice'): Promise<string> =>
  encryptToken({ sub, iat: NOW, exp: NOW + 10_000_000 }, publicJwk, {
    sign: { key: privateKey, issuer, audience: AUDIENCE },
  });

/** One that was issued at a time of one's own, and lasts. */
const mintAt = (iat: number, issuer: string, { privateKey }: SigningKey, sub = 'alice'): Promise<string> =>
  encryptToken({ sub, iat: iat - 200_000, exp: NOW + 10_000_000 }, publicJwk, {
    sign: { key: privateKey, issuer, audience: AUDIENCE },
  });

/** An issuer's server: what it answers, and how often it was asked. */
interface IssuerServer {
  url: URL;
  hits: string[];
  answer: RequestListener;
  keys: SigningKey[];
  drop: () => void;
}
const answerKeys: (server: IssuerServer) => RequestListener = (server) => (_req, res) => {
  res
    .setHeader('content-type', 'application/json')
    .end(JSON.stringify({ keys: server.keys.map(({ publicKey }) => publicKey) }));
};
const answerNothing: RequestListener = () => {};
const answerError: RequestListener = (_req, res) => {
  res.writeHead(500).end();
};

async function startIssuer(scope: Scope, ...keys: SigningKey[]): Promise<IssuerServer> {
  const { url, server } = await serve(scope, (req, res) => {
    issuer.hits.push(req.url ?? '');
    issuer.answer(req, res);
  });
  const issuer: IssuerServer = {
    url: new URL('/jwks.json', url),
    hits: [],
    answer: answerNothing,
    keys,
    drop: () => server.closeAllConnections(),
  };
  issuer.answer = answerKeys(issuer);
  return issuer;
}

/** A server that trusts them by name. */
async function start(scope: Scope, issuers: Record<string, TrustedIssuer['jwks']>, options: AuthOptions = {}) {
  const clock = { now: NOW };
  const events: AuthEvent[] = [];
  const { url } = await serve(
    scope,
    withAuth(
      (_req, res) => {
        const { user, signed, issuer } = getAuth() ?? {};
        res.end(JSON.stringify({ sub: user?.sub, signed, issuer }));
      },
      {
        keys: privateJwk,
        audience: AUDIENCE,
        now: () => clock.now,
        trustedIssuers: Object.entries(issuers).map(([issuer, jwks]) => ({ issuer, jwks })),
        onEvent: ({ durationMs, ...event }) => {
          if (!event.type.startsWith('issuer.')) return;
          assert.ok(typeof durationMs === 'number' && durationMs >= 0 && durationMs < 10_000, String(durationMs));
          events.push(event);
        },
        ...options,
      },
    ),
  );
  const get = (token: string): Promise<Response> => fetch(url, { headers: { authorization: `Bearer ${token}` } });
  const ask = async (token: string): Promise<number> => (await get(token)).status;
  return { clock, events, get, ask };
}
const FETCHED = { type: 'issuer.fetched', issuer: 'one' };
/** What is said when the keys of the issuer `one` cannot be read. */
const failed = (code: string, source: string, cause = code): object => ({
  type: 'issuer.failed',
  issuer: 'one',
  code,
  message: `The keys of the issuer one cannot be read from ${source}: ${cause}`,
});

interface Warning {
  code?: string;
  message: string;
}
const warned: Warning[] = [];
process.on('warning', (warning) => warned.push(warning));

// ## Which URLs

const urls: [url: string, accepted: boolean][] = [
  ['https://issuer.example/jwks', true],
  ['http://127.0.0.1:8080/jwks', true],
  ['http://127.1.2.3/jwks', true],
  ['http://localhost/jwks', true],
  ['http://[::1]/jwks', true],
  ['http://issuer.example/jwks', false],
  ['http://10.0.0.1/jwks', false],
  ['http://0.0.0.0/jwks', false],
  ['http://169.254.169.254/latest', false],
  ['http://127.0.0.1.example/jwks', false],
  ['http://localhost.example/jwks', false],
  ['http://[::ffff:10.0.0.1]/jwks', false],
  ['https://user:secret@issuer.example/jwks', false],
  ['ftp://issuer.example/jwks', false],
  ['file:///etc/jwks', false],
  ['data:application/json,{"keys":[]}', false],
];
for (const [url, accepted] of urls) {
  test(`${accepted ? 'takes' : 'refuses'} ${url} as the place of an issuer's keys`, () => {
    const construct = (): JWETokenVerifier =>
      new JWETokenVerifier({
        keys: privateJwk,
        audience: AUDIENCE,
        trustedIssuers: [{ issuer: 'one', jwks: new URL(url) }],
      });
    if (accepted) construct();
    else
      assert.throws(
        construct,
        (error) =>
          error instanceof KeyError &&
          error.code === 'option' &&
          /jwks.*https/.test(error.message) &&
          !error.message.includes('secret'),
      );
  });
}

test('fetches nothing at construction, but at the first tick or need, and never the changed URL object', async (t) => {
  const [idle, needed] = [await startIssuer(t, first), await startIssuer(t, first)];
  const urls = [new URL(idle.url), new URL(needed.url)];
  const servers = await Promise.all(urls.map((url) => start(t, { one: url })));
  for (const url of urls) url.pathname = '/elsewhere';
  assert.deepEqual([idle.hits, needed.hits], [[], []]);
  assert.equal(await servers[1]?.ask(await mint('one', first)), 200);
  await until(() => idle.hits.length > 0);
  await until(() => servers[0]?.events.length === 1);
  assert.deepEqual([idle.hits, needed.hits], [['/jwks.json'], ['/jwks.json']]);
  assert.deepEqual(
    servers.map(({ events }) => events),
    [[FETCHED], [FETCHED]],
  );
});

// ## What is no key set

const json =
  (value: unknown): RequestListener =>
  (_req, res) => {
    res.end(JSON.stringify(value));
  };
const NO_SET = 'is not a JWK Set, an object with an array "keys"';
const answers: [what: string, answer: RequestListener, code: string, cause?: string][] = [
  ['an error', answerError, 'status 500'],
  [
    'not found, with a key set',
    (_req, res) => {
      res.writeHead(404).end(JSON.stringify({ keys: [first.publicKey] }));
    },
    'status 404',
  ],
  [
    'no content',
    (_req, res) => {
      res.writeHead(204).end();
    },
    'status 204',
  ],
  [
    'nothing',
    (_req, res) => {
      res.end();
    },
    'malformed',
    NO_SET,
  ],
  [
    'no JSON',
    (_req, res) => {
      res.end('<html>');
    },
    'malformed',
    NO_SET,
  ],
  ['an array', json([first.publicKey]), 'malformed', NO_SET],
  ['null', json(null), 'malformed', NO_SET],
  ['one JWK', json(first.publicKey), 'malformed', NO_SET],
  ['no keys', json({ keys: [] }), 'malformed', 'has no usable key for signatures (it is empty)'],
  [
    'a byte order mark',
    (_req, res) => {
      res.end(`\ufeff${JSON.stringify({ keys: [first.publicKey] })}`);
    },
    'malformed',
    NO_SET,
  ],
  [
    'a private key',
    json({ keys: [first.privateKey] }),
    'malformed',
    'has no usable key for signatures (key 1: is a private or secret key)',
  ],
  [
    'a secret',
    json({ keys: [{ kty: 'oct', k: 'AAAA' }] }),
    'malformed',
    'has no usable key for signatures (key 1: is a private or secret key)',
  ],
  [
    'keys for encryption only',
    json({ keys: [publicJwk] }),
    'malformed',
    'has no usable key for signatures (key 1: "use" is not sig)',
  ],
  [
    'keys of which none can be used, each with its reason, up to five',
    json({
      keys: [
        null,
        { ...first.publicKey, kid: 7 },
        { ...first.publicKey, x: 'AA' },
        { ...first.publicKey, key_ops: ['sign'] },
        { ...first.publicKey, alg: 'ES256' },
        { kty: 'oct', k: 'AAAA' },
      ],
    }),
    'malformed',
    'has no usable key for signatures (key 1: is not a JSON object; key 2: "kid" is not a string; ' +
      'key 3: a coordinate is not 32 octets in base64url; key 4: "key_ops" lacks verify; ' +
      'key 5: "alg" is not RS256, PS256, ES256 or EdDSA, or does not fit the key)',
  ],
  [
    'a closed connection',
    (req) => {
      req.socket.destroy();
    },
    'UND_ERR_SOCKET',
  ],
  [
    'half an answer',
    (req, res) => {
      res.writeHead(200, { 'content-length': '5000' });
      res.write('{"keys":[');
      setImmediate(() => req.socket.destroy());
    },
    'UND_ERR_SOCKET',
  ],
  ...[301, 302, 303, 307, 308].map((status): [string, RequestListener, string] => [
    `a redirect with ${status}, which is not followed`,
    (req, res) => {
      if (req.url === '/elsewhere') json({ keys: [first.publicKey] })(req, res);
      else res.writeHead(status, { location: '/elsewhere' }).end();
    },
    `status ${status}`,
  ]),
];
for (const [what, answer, code, cause] of answers) {
  test(`an issuer that answers with ${what} draws 503, one event, one warning, and recovers`, async (t) => {
    const issuer = await startIssuer(t, first);
    const good = issuer.answer;
    issuer.answer = answer;
    const url = new URL('?client_secret=QUERY-SECRET', issuer.url);
    const { clock, events, get, ask } = await start(t, { one: url });
    const token = await mint('one', first);
    const refused = await get(token);
    assert.equal(refused.status, 503);
    assert.match(String(refused.headers.get('retry-after')), /^[1-9]/);
    assert.equal(refused.headers.get('cache-control'), 'no-store');
    assert.equal(Object(await refused.json()).error, 'temporarily_unavailable');
    const event = failed(code, `${url.origin}/jwks.json`, cause);
    assert.deepEqual(events, [event]);
    clock.now += 2;
    assert.equal(await ask(token), 503);
    assert.deepEqual(events, [event], 'the same failure is said once');
    const said = warned.filter(({ message }) => message.includes(url.origin));
    assert.deepEqual(
      said.map((warning) => [warning.code, warning.message]),
      [['MCP_AUTH_ISSUER', Object(event).message]],
    );
    assert.ok(!issuer.hits.some((hit) => hit.startsWith('/elsewhere')));
    issuer.answer = good;
    clock.now += 2;
    assert.equal(await ask(token), 200);
    assert.deepEqual(events.at(-1), FETCHED);
  });
}

test('another cause is another event and another warning', async (t) => {
  const issuer = await startIssuer(t, first);
  const { clock, events, ask } = await start(t, { one: issuer.url });
  const causes = [answerError, json({}), answerError, answerKeys(issuer), answerError];
  for (const [index, answer] of causes.entries()) {
    issuer.answer = answer;
    clock.now += 700 * (index + 1);
    await ask(await mint('one', first, `${index}`));
  }
  const codes = events.map(({ code, type }) => code ?? type);
  assert.deepEqual(codes, ['status 500', 'malformed', 'status 500', 'issuer.fetched', 'status 500']);
  assert.equal(warned.filter(({ message }) => message.includes(issuer.url.origin)).length, 2);
});

test('an issuer that is not there is said with the code of the system', async (t) => {
  const closed = listenTcp().listen(0, '127.0.0.1');
  await once(closed, 'listening');
  const refusing = new URL(`http://127.0.0.1:${Object(closed.address()).port}/jwks`);
  await new Promise((resolve) => closed.close(resolve));
  const plain = await startIssuer(t, first);
  const unknown = new URL('https://issuer.invalid/jwks');
  const name = await lookup(unknown.hostname).then(
    () => assert.fail('a name that never exists (RFC 6761)'),
    (error: unknown) => String(Object(error).code),
  );
  assert.match(name, /^(ENOTFOUND|EAI_AGAIN)$/);
  for (const [url, code] of [
    [refusing, /^ECONNREFUSED$/],
    [unknown, new RegExp(`^${name}$`)],
    [new URL(`https://127.0.0.1:${plain.url.port}/jwks`), /^ERR_SSL_\w+$/],
  ] as const) {
    const { events, ask } = await start(t, { one: url });
    assert.equal(await ask(await mint('one', first)), 503);
    const [event] = events;
    assert.match(String(event?.code), code);
    assert.deepEqual(events, [failed(String(event?.code), url.href)]);
  }
});

for (const [octets, accepted] of [
  [524_288, true],
  [524_289, false],
] as const) {
  test(`a key set of ${octets} octets is ${accepted ? 'read' : 'refused'}, compressed or not`, async (t) => {
    const issuer = await startIssuer(t);
    const text = JSON.stringify({ keys: [first.publicKey] }).padEnd(octets);
    for (const answer of [
      (_req, res) => {
        res.end(text);
      },
      (_req, res) => {
        res.setHeader('content-encoding', 'gzip').end(gzipSync(text));
      },
    ] satisfies RequestListener[]) {
      issuer.answer = answer;
      const { events, ask } = await start(t, { one: issuer.url });
      assert.equal(await ask(await mint('one', first)), accepted ? 200 : 503);
      const expected = accepted ? FETCHED : failed('malformed', issuer.url.href, 'the JWK Set has more than 512 KiB');
      assert.deepEqual(events, [expected]);
    }
  });
}

test('a set of 1,000 keys is read, and the last of them verifies', async (t) => {
  const others = Array.from({ length: 1000 }, (_, i) => ({
    ...second,
    publicKey: { ...second.publicKey, kid: `${i}` },
  }));
  const issuer = await startIssuer(t, ...others, first);
  const { ask } = await start(t, { one: issuer.url });
  assert.equal(await ask(await mint('one', first)), 200);
});

test('a key set without end is cut off', async (t) => {
  const issuer = await startIssuer(t);
  let sent = 0;
  const closed: Promise<unknown>[] = [];
  issuer.answer = (_req, res) => {
    closed.push(once(res, 'close'));
    const send = (): void => {
      while (!res.destroyed && res.write(' '.repeat(16_384))) sent += 16_384;
    };
    res.on('drain', send).on('error', () => {});
    send();
  };
  const { events, ask } = await start(t, { one: issuer.url });
  assert.equal(await ask(await mint('one', first)), 503);
  await Promise.all(closed);
  assert.deepEqual(events, [failed('malformed', issuer.url.href, 'the JWK Set has more than 512 KiB')]);
  assert.ok(sent < 64 * 1_048_576, `${sent} octets`); // what the sockets and streams between hold
});

test('foreign and unusable keys of a set are skipped', async (t) => {
  const issuer = await startIssuer(t);
  const odd = [
    null,
    'key',
    1,
    [],
    {},
    { kty: 'oct', k: 'AAAA' },
    { kty: 'EC', crv: 'secp256k1', x: 'AA', y: 'AA' },
    { kty: 'OKP', crv: 'X25519', x: first.publicKey.x },
    publicJwk,
    { ...second.publicKey, kid: 1 },
    { ...second.publicKey, x: 'AA' },
    second.privateKey,
  ];
  issuer.answer = json({ keys: [...odd, first.publicKey] });
  const { ask } = await start(t, { one: issuer.url });
  assert.deepEqual([await ask(await mint('one', first)), await ask(await mint('one', second))], [200, 401]);
});

test('an issuer that does not answer, or not to the end, is given up after 5 s', { timeout: 30_000 }, async (t) => {
  const collecting = setInterval(collect, 100); // by which Node 20 and 22 forget the signal of a fetch
  t.after(() => clearInterval(collecting));
  const [silent, slow] = [await startIssuer(t, first), await startIssuer(t, first)];
  silent.answer = answerNothing;
  slow.answer = (_req, res) => {
    const drip = setInterval(() => {
      res.write(' ');
    }, 100);
    res.once('close', () => clearInterval(drip));
  };
  const token = await mint('one', first);
  const sources = [silent.url, slow.url, (): Promise<never> => new Promise(() => {})];
  await Promise.all(
    sources.map(async (source) => {
      const { events, ask } = await start(t, { one: source });
      const began = performance.now();
      assert.equal(await ask(token), 503);
      const ms = performance.now() - began;
      assert.ok(ms > 4500 && ms < 7000, `waited ${ms} ms: 5 s at most, once`);
      assert.deepEqual(events, [failed('timeout', source instanceof URL ? source.href : 'the function "jwks"')]);
    }),
  );
});

// ## A function that gets the set

describe('"jwks" as a function', () => {
  const set = { keys: [first.publicKey] };

  it('is called at the first need, without arguments, in nobody’s context, and its set is kept', async (t) => {
    const calls: unknown[][] = [];
    const users: unknown[] = [];
    const get = async (...args: unknown[]): Promise<{ keys: Jwk[] }> => {
      calls.push(args);
      users.push(getUser().sub);
      await sleep(20);
      users.push(getUser().sub);
      return set;
    };
    const { clock, events, ask } = await start(t, { one: get, two: { keys: [second.publicKey] } });
    assert.deepEqual(calls, []);
    const tokens = await Promise.all(Array.from({ length: 20 }, (_, i) => mint('one', first, `user ${i}`)));
    assert.deepEqual(new Set(await Promise.all(tokens.map(ask))), new Set([200]));
    assert.deepEqual([calls, events], [[[]], [FETCHED]]);
    clock.now += 601;
    assert.deepEqual(new Set(await Promise.all(tokens.map(ask))), new Set([200]));
    assert.deepEqual([calls, users], [[[], []], Array.from({ length: 4 }, () => undefined)]);
  });

  test('a port that fetch refuses to call is said', async (t) => {
    const url = new URL('http://127.0.0.1:6000/jwks');
    const { events, ask } = await start(t, { one: url });
    assert.equal(await ask(await mint('one', first)), 503);
    assert.deepEqual(events, [failed('bad port', url.href)]);
  });

  const untyped = (value: unknown): (() => Promise<{ keys: Jwk[] }>) => value as () => Promise<{ keys: Jwk[] }>;
  const rubbish: [what: string, get: () => unknown, code: string, cause?: string][] = [
    [
      'rejects with a system error',
      () => Promise.reject(Object.assign(new Error('X'), { code: 'ENOTFOUND' })),
      'ENOTFOUND',
    ],
    [
      'rejects with a system error as the cause',
      () => Promise.reject(new Error('SECRET-TEXT', { cause: Object.assign(new Error(), { code: 'ECONNRESET' }) })),
      'ECONNRESET',
    ],
    ['rejects with an error without a code', () => Promise.reject(new RangeError('SECRET-TEXT')), 'RangeError'],
    ['rejects with a text', () => Promise.reject('SECRET-TEXT'), 'unknown'],
    ['rejects with nothing', () => Promise.reject(undefined), 'unknown'],
    [
      'throws at once',
      () => {
        throw new TypeError('SECRET-TEXT');
      },
      'TypeError',
    ],
    ['returns nothing', () => undefined, 'malformed', NO_SET],
    ['resolves to null', () => Promise.resolve(null), 'malformed', NO_SET],
    ['resolves to a text', () => Promise.resolve(JSON.stringify(set)), 'malformed', NO_SET],
    ['resolves to an array', () => Promise.resolve([first.publicKey]), 'malformed', NO_SET],
    ['resolves to a Response', () => Promise.resolve(new Response(JSON.stringify(set))), 'malformed', NO_SET],
    ['resolves to keys that are none', () => Promise.resolve({ keys: 'SECRET-TEXT' }), 'malformed', NO_SET],
    [
      'returns a thenable that throws',
      () => ({
        then() {
          throw new SyntaxError('SECRET-TEXT');
        },
      }),
      'SyntaxError',
    ],
  ];
  for (const [what, get, code, cause] of rubbish) {
    it(`that ${what} is a failure in words, then 503, and recovers`, async (t) => {
      let current = get;
      const { clock, events, ask } = await start(t, { one: untyped(() => current()) });
      const token = await mint('one', first);
      assert.equal(await ask(token), 503);
      assert.deepEqual(events, [failed(code, 'the function "jwks"', cause)]);
      assert.ok(!JSON.stringify([events, warned.map(({ message }) => message)]).includes('SECRET-TEXT'));
      current = () => Promise.resolve(set);
      clock.now += 2;
      assert.equal(await ask(token), 200);
    });
  }

  it('that returns the set without a promise is taken', async (t) => {
    const { ask } = await start(t, { one: untyped(() => set) });
    assert.equal(await ask(await mint('one', first)), 200);
  });
});

// ## Algorithms of a key that names none

describe('a key without alg', () => {
  const pairs: Record<string, { publicKey: KeyObject; privateKey: KeyObject }> = {
    RSA: newPair('rsa'),
    EC: newPair('ec'),
    OKP: newPair('ed25519'),
  };
  type Algorithms = TrustedIssuer['algorithms'];
  const rows: [kty: string, alg: string | undefined, algorithms: Algorithms, verifies: string[] | string][] = [
    ['RSA', undefined, undefined, ['RS256']],
    ['RSA', undefined, ['RS256'], ['RS256']],
    ['RSA', undefined, ['PS256'], ['PS256']],
    ['RSA', undefined, ['RS256', 'PS256'], ['RS256', 'PS256']],
    ['RSA', undefined, ['PS256', 'ES256', 'EdDSA'], ['PS256']],
    ['RSA', undefined, ['ES256'], 'its algorithm is not in "algorithms"'],
    ['RSA', 'PS256', undefined, ['PS256']],
    ['RSA', 'PS256', ['RS256', 'PS256'], ['PS256']],
    ['RSA', 'RS256', ['PS256'], 'its algorithm is not in "algorithms"'],
    ['EC', undefined, undefined, ['ES256']],
    ['EC', undefined, ['ES256', 'RS256'], ['ES256']],
    ['EC', undefined, ['EdDSA'], 'its algorithm is not in "algorithms"'],
    ['OKP', undefined, undefined, ['EdDSA']],
    ['OKP', undefined, ['Ed25519'], ['EdDSA']],
    ['OKP', 'Ed25519', ['EdDSA'], ['EdDSA']],
    ['OKP', undefined, ['RS256'], 'its algorithm is not in "algorithms"'],
  ];
  for (const [kty, alg, algorithms, verifies] of rows) {
    const about = `${kty}${alg ? `, alg ${alg}` : ''}, algorithms ${algorithms?.join(' ') ?? 'not given'}`;
    it(`(${about}) verifies ${typeof verifies === 'string' ? 'nothing' : verifies.join(' and ')}`, async (t) => {
      const pair = pairs[kty];
      assert.ok(pair);
      const jwk = { ...pair.publicKey.export({ format: 'jwk' }), kid: 'k', ...(alg && { alg }) };
      const issuer = await startIssuer(t);
      issuer.answer = json({ keys: [jwk] });
      const trustedIssuers = [{ issuer: 'one', jwks: issuer.url, ...(algorithms && { algorithms }) }];
      const { events, ask } = await start(t, {}, { trustedIssuers });
      const fitting = kty === 'RSA' ? ['RS256', 'PS256'] : kty === 'EC' ? ['ES256'] : ['EdDSA'];
      for (const signature of fitting) {
        const payload = { iss: 'one', aud: AUDIENCE, sub: 'alice', iat: NOW, exp: NOW + 1000 };
        const jws = signJws({ alg: signature, kid: 'k' }, payload, (input) => {
          const signer = SIGNERS[signature];
          assert.ok(signer);
          return signer(input, pair.privateKey);
        });
        const expected = typeof verifies === 'string' ? 503 : verifies.includes(signature) ? 200 : 401;
        assert.equal(await ask(seal(publicJwk, { header: { cty: 'JWT' }, plaintext: jws })), expected, signature);
      }
      if (typeof verifies !== 'string') return assert.deepEqual(events[0], FETCHED);
      const cause = `has no usable key for signatures (key 1: ${verifies})`;
      assert.deepEqual(events[0], failed('malformed', issuer.url.href, cause));
    });
  }
});

// ## Keeping a set

for (const direction of [1, -1]) {
  const way = direction > 0 ? 'as time passes' : 'when the clock is set back';
  test(`a set is used for 10 min, then fetched again by the next token, ${way}`, async (t) => {
    const issuer = await startIssuer(t, first);
    const { clock, events, ask } = await start(t, { one: issuer.url }, { requireExp: true });
    const at = async (seconds: number): Promise<number> => {
      clock.now = NOW + direction * seconds;
      const token = await mintAt(clock.now, 'one', first, `at ${seconds}`);
      assert.equal(await ask(token), 200);
      return issuer.hits.length;
    };
    assert.deepEqual(
      [await at(0), await at(1), await at(600), await at(600.5), await at(1200), await at(1201)],
      [1, 1, 1, 2, 2, 3],
    );
    assert.deepEqual(events, [FETCHED, FETCHED, FETCHED]);
  });

  test(`the last good set serves for 24 h while the issuer is down, then 503 until it is back, ${way}`, async (t) => {
    const issuer = await startIssuer(t, first);
    const good = issuer.answer;
    const { clock, events, ask } = await start(t, { one: issuer.url });
    const known = await mintAt(NOW - 100_000, 'one', first);
    assert.equal(await ask(known), 200);
    issuer.answer = answerError;
    const at = async (seconds: number): Promise<number[]> => {
      clock.now = NOW + direction * seconds;
      return [await ask(known), await ask(await mintAt(NOW - 100_000, 'one', first, `at ${seconds}`))];
    };
    for (const seconds of [601, 3600, 86_399]) assert.deepEqual(await at(seconds), [200, 200], `${seconds} s`);
    assert.deepEqual(await at(86_400), [503, 503]);
    assert.deepEqual(await at(30 * 86_400), [503, 503], 'an old set does not become young');
    assert.deepEqual(events, [FETCHED, failed('status 500', issuer.url.href)]);
    issuer.answer = good;
    assert.deepEqual(await at(86_430), [200, 200]);
    assert.deepEqual(events.at(-1), FETCHED);
  });

  test(`an unknown kid fetches the set at once, and then every 30 s at most, ${way}`, async (t) => {
    const issuer = await startIssuer(t, first);
    const { clock, ask } = await start(t, { one: issuer.url });
    const at = async (seconds: number, key: SigningKey): Promise<[status: number, hits: number]> => {
      clock.now = NOW + direction * seconds;
      return [await ask(await mintAt(NOW - 1000, 'one', key, `at ${seconds}`)), issuer.hits.length];
    };
    assert.deepEqual(await at(0, first), [200, 1]);
    issuer.keys = [first, second];
    assert.deepEqual(await at(1, second), [200, 2]); // although the set is 1 s old
    issuer.keys = [first, second, third];
    assert.deepEqual(await at(2, third), [401, 2]);
    assert.deepEqual(await at(30.9, third), [401, 2]);
    assert.deepEqual(await at(31, third), [200, 3]);
    assert.deepEqual(await at(32, first), [200, 3]);
  });

  test(`a withdrawn key is good for 10 min at most while its issuer answers, known tokens too, ${way}`, async (t) => {
    const issuer = await startIssuer(t, first, second);
    const { clock, ask } = await start(t, { one: issuer.url });
    const tokens = await Promise.all([first, second].map((key) => mintAt(NOW - 1000, 'one', key)));
    const both = async (): Promise<number[]> => [await ask(tokens[0] ?? ''), await ask(tokens[1] ?? '')];
    assert.deepEqual(await both(), [200, 200]);
    issuer.keys = [second];
    clock.now += direction * 600;
    assert.equal(await countRsa(async () => assert.deepEqual(await both(), [200, 200])), 0);
    clock.now += direction;
    assert.equal(await ask(tokens[0] ?? ''), 401); // the first to find the set old waits for the new one
    assert.equal(await countRsa(async () => assert.equal(await ask(tokens[1] ?? ''), 200)), 0);
    assert.equal(issuer.hits.length, 3); // the last for a kid that had become unknown
  });
}

test('many new tokens at once share one fetch', async (t) => {
  const issuer = await startIssuer(t, first);
  const good = issuer.answer;
  issuer.answer = (req, res) => {
    setTimeout(() => good(req, res), 50);
  };
  const { events, ask } = await start(t, { one: issuer.url });
  const tokens = await Promise.all(Array.from({ length: 50 }, (_, i) => mint('one', first, `user ${i}`)));
  assert.deepEqual(new Set(await Promise.all(tokens.map(ask))), new Set([200]));
  assert.equal(issuer.hits.length, 1);
  assert.deepEqual(events, [FETCHED]);
});

test('forged tokens with unknown kids cause one fetch in 30 s, however many they are', async (t) => {
  const issuer = await startIssuer(t, first);
  const { clock, ask } = await start(t, { one: issuer.url });
  assert.equal(await ask(await mint('one', first)), 200);
  for (const hits of [2, 3]) {
    const tokens = await Promise.all(
      Array.from({ length: 50 }, (_, i) => mint('one', signingKey(`unknown ${i}`), `${hits}`)),
    );
    assert.deepEqual(new Set(await Promise.all(tokens.map(ask))), new Set([401]));
    assert.equal(issuer.hits.length, hits);
    clock.now += 30;
  }
});

test('a forged signature under a known kid causes no fetch', async (t) => {
  const issuer = await startIssuer(t, first);
  const { ask } = await start(t, { one: issuer.url });
  assert.equal(await ask(await mint('one', first)), 200);
  assert.equal(await ask(await mint('one', signingKey('first'))), 401);
  assert.equal(issuer.hits.length, 1);
});

test('another key under the same kid takes the known tokens of the first with it', async (t) => {
  const issuer = await startIssuer(t, first);
  const { clock, events, ask } = await start(t, { one: issuer.url });
  const [old, impostor] = [await mint('one', first), signingKey('first')];
  assert.equal(await ask(old), 200);
  issuer.keys = [impostor];
  clock.now += 601;
  assert.equal(await ask(await mint('one', impostor)), 200);
  assert.equal(events.length, 2);
  assert.equal(await ask(old), 401);
});

// ## Down

test('while an issuer is down, requests ask it once and the timer every 10 s, until it is back', async (t) => {
  const issuer = await startIssuer(t, first);
  const { clock, events, ask } = await start(t, { one: issuer.url });
  const known = await mint('one', first);
  assert.equal(await ask(known), 200);
  issuer.answer = answerError;
  const began = performance.now(); // the first of these requests asks
  for (let seconds = 601; seconds < 661; seconds += 1) {
    clock.now = NOW + seconds;
    assert.equal(await ask(await mint('one', first, `at ${seconds}`)), 200);
  }
  assert.equal(issuer.hits.length, 2, 'by requests');
  await until(() => issuer.hits.length === 3);
  const ms = performance.now() - began;
  assert.ok(ms > 9500 && ms < 13_000, `the timer asked after ${ms} ms`);
  assert.deepEqual(events, [FETCHED, failed('status 500', issuer.url.href)]);
  issuer.answer = answerKeys(issuer);
  issuer.keys = [second];
  await until(() => events.length === 3);
  assert.deepEqual(events[2], FETCHED);
  assert.ok(performance.now() - began < 25_000);
  assert.equal(await ask(known), 401, 'without any request that asked');
});

test('a failed fetch keeps the set that was there, with its known tokens', async (t) => {
  const issuer = await startIssuer(t, first);
  const { clock, events, ask } = await start(t, { one: issuer.url });
  const known = await mint('one', first);
  assert.equal(await ask(known), 200);
  issuer.answer = json({ keys: {} });
  clock.now += 601;
  assert.equal(await ask(await mint('one', first, 'bob')), 200);
  const cause = 'is not a JWK Set, an object with an array "keys"';
  assert.deepEqual(events, [FETCHED, failed('malformed', issuer.url.href, cause)]);
  assert.equal(await countRsa(async () => assert.equal(await ask(known), 200)), 0);
});

for (const [what, keys, cause] of [
  ['no key at all', [], 'it is empty'],
  [
    'none that could be used',
    [{ kty: 'EC', crv: 'P-384' }],
    'key 1: "kty" and "crv" are none of RSA, EC P-256 and OKP Ed25519',
  ],
] as const) {
  test(`a set with ${what} withdraws the keys of the one before, until there is another`, async (t) => {
    const issuer = await startIssuer(t, first);
    const { clock, events, ask } = await start(t, { one: issuer.url });
    const known = await mint('one', first);
    assert.equal(await ask(known), 200);
    const answer = issuer.answer;
    issuer.answer = json({ keys });
    clock.now += 601;
    assert.equal(await ask(known), 503);
    assert.equal(await ask(await mint('one', first, 'bob')), 503);
    const message = `has no usable key for signatures (${cause})`;
    assert.deepEqual(events, [FETCHED, failed('malformed', issuer.url.href, message)]);
    issuer.answer = answer;
    clock.now += 2; // as for any issuer without a usable set
    assert.equal(await ask(known), 200);
    // From a function, and what a probe hears.
    let given: Jwk[] = [first.publicKey];
    const verifier = new JWETokenVerifier({
      keys: privateJwk,
      audience: AUDIENCE,
      now: () => clock.now,
      trustedIssuers: [{ issuer: 'one', jwks: async () => ({ keys: given }) }],
    });
    assert.equal(await outcome(verifier.authenticate(known)), 'accepted');
    assert.equal(verifier.isReady(), true);
    given = [...keys];
    clock.now += 601;
    assert.equal(await outcome(verifier.authenticate(known)), 'issuer_unavailable');
    assert.equal(verifier.isReady(), false);
  });
}

test('a function may reject with what throws when it is looked at: 503, and its next answer counts', async (t) => {
  const { proxy, revoke } = Proxy.revocable({}, {});
  revoke();
  const getter = Object.defineProperty({}, 'code', { get: () => assert.fail('looked at') });
  for (const thrown of [proxy, getter, Object.assign(new Error(), { name: {} })]) {
    let answer = (): Promise<JwkSet> => Promise.reject(thrown);
    const { clock, events, ask } = await start(t, { one: () => answer() });
    assert.equal(await ask(await mint('one', first)), 503);
    answer = () => Promise.resolve({ keys: [first.publicKey] });
    clock.now += 2;
    assert.equal(await ask(await mint('one', first)), 200);
    assert.deepEqual(events, [failed('unknown', 'the function "jwks"'), FETCHED]);
  }
});

/** Lets the issuer hang, and tells whether its last request is still open: it is given up after 5 s. */
function hang(issuer: IssuerServer): () => Promise<boolean> {
  let open = false;
  issuer.answer = (_req, res) => {
    open = true;
    res.once('close', () => {
      open = false;
    });
  };
  return async () => {
    await sleep(200); // until a close would have been seen
    return open;
  };
}

test('an issuer that hangs does not delay tokens of one whose keys are at hand', async (t) => {
  const [silent, other] = [await startIssuer(t, first), await startIssuer(t, second)];
  const { clock, ask } = await start(t, { silent: silent.url, given: { keys: [third.publicKey] }, other: other.url });
  assert.equal(await ask(await mint('given', third)), 200);
  assert.deepEqual([silent.hits, other.hits], [[], []]); // nobody else's keys were needed
  assert.equal(await ask(await mint('other', second)), 200);
  const isHanging = hang(silent);
  const asked = silent.hits.length;
  clock.now += 30;
  const waiting = ask(await mint('silent', signingKey('unknown')));
  await until(() => silent.hits.length > asked);
  assert.equal(await ask(await mint('given', third, 'bob')), 200);
  assert.equal(await ask(await mint('other', second, 'bob')), 200);
  assert.ok(await isHanging());
  silent.drop();
  assert.equal(await waiting, 503, 'no set of its issuer was ever there');
});

test('an issuer that hangs does not delay tokens of one whose keys have to be fetched', async (t) => {
  const [silent, other] = [await startIssuer(t, first), await startIssuer(t, second)];
  const { clock, ask } = await start(t, { silent: silent.url, other: other.url });
  const isHanging = hang(silent);
  const waiting = ask(await mint('silent', first));
  await until(() => silent.hits.length === 1);
  for (const seconds of [0, 601, 1202]) {
    // never fetched, and twice too old
    clock.now = NOW + seconds;
    assert.equal(await ask(await mint('other', second, `at ${seconds}`)), 200);
    assert.ok(await isHanging(), `waited, after ${seconds} s`);
  }
  silent.drop();
  assert.equal(await waiting, 503);
});

test('a known token waits for the keys of its issuer once, and not again while that is down', async (t) => {
  const issuer = await startIssuer(t, first);
  const { clock, events, ask } = await start(t, { one: issuer.url });
  const known = await mint('one', first);
  assert.equal(await ask(known), 200);
  clock.now += 601;
  const isHanging = hang(issuer);
  const waiting = ask(known);
  await until(() => issuer.hits.length === 2);
  assert.ok(await isHanging());
  issuer.drop();
  assert.equal(await waiting, 200);
  assert.deepEqual(
    events.map(({ type }) => type),
    ['issuer.fetched', 'issuer.failed'],
  );
  const cost = await countRsa(async () => {
    for (let i = 0; i < 3; i += 1) assert.equal(await ask(known), 200);
  });
  assert.equal(cost, 0);
  assert.equal(await ask(await mint('one', first, 'bob')), 200); // nor does a new one
  assert.equal(issuer.hits.length, 2);
});

test('a token asks an issuer that is down once, and within a second nobody asks again', async (t) => {
  const issuer = await startIssuer(t, first);
  issuer.answer = answerError;
  const { clock, ask } = await start(t, { one: issuer.url });
  assert.equal(await ask(await mint('one', first)), 503);
  assert.equal(issuer.hits.length, 1);
  clock.now += 1;
  assert.equal(await ask(await mint('one', first, 'bob')), 503);
  assert.equal(issuer.hits.length, 1);
  clock.now += 0.5;
  assert.equal(await ask(await mint('one', first, 'carol')), 503);
  assert.equal(issuer.hits.length, 2);
});

test('getAuth says which issuer signed, and each issuer speaks for itself only', async (t) => {
  const [one, two] = [await startIssuer(t, first), await startIssuer(t, second)];
  const { get, ask } = await start(t, { one: one.url, two: two.url });
  for (const [issuer, key] of [
    ['one', first],
    ['two', second],
  ] as const) {
    assert.deepEqual(await (await get(await mint(issuer, key))).json(), { sub: 'alice', signed: true, issuer });
  }
  assert.equal(await ask(await mint('two', first)), 401);
  assert.equal(await ask(await mint('one', second)), 401);
  assert.equal(await ask(await mint('three', first)), 401);
});

// ## Ready

test('isReady: an unexpired key and at least one usable set', async (t) => {
  const [up, down] = [await startIssuer(t, first), await startIssuer(t, second)];
  down.answer = answerError;
  let now = NOW;
  const options = { keys: { ...privateJwk, exp: NOW + 200_000 }, audience: AUDIENCE, now: () => now };
  const verifier = (issuers: Record<string, TrustedIssuer['jwks']>): JWETokenVerifier =>
    new JWETokenVerifier({
      ...options,
      trustedIssuers: Object.entries(issuers).map(([issuer, jwks]) => ({ issuer, jwks })),
    });
  const given = verifier({ one: { keys: [first.publicKey] } });
  const [one, two, none] = [
    verifier({ one: up.url }),
    verifier({ one: up.url, two: down.url }),
    verifier({ two: down.url }),
  ];
  const ready = (): boolean[] => [given, one, two, none].map((subject) => subject.isReady());
  assert.deepEqual(ready(), [true, false, false, false]);
  await until(() => one.isReady() && two.isReady()); // by the timer alone
  assert.deepEqual(ready(), [true, true, true, false]);
  assert.equal(await outcome(none.authenticate(await mint('two', second))), 'issuer_unavailable');
  now = NOW + 86_399;
  assert.deepEqual(ready(), [true, true, true, false]);
  for (const then of [NOW + 86_400, NOW - 86_400]) {
    now = then;
    assert.deepEqual(ready(), [true, false, false, false]);
  }
  now = NOW + 199_999;
  assert.equal(given.isReady(), true);
  now = NOW + 200_000;
  assert.equal(given.isReady(), false);
  assert.equal(new JWETokenVerifier({ keys: privateJwk }).isReady(), true);
});

// ## Many requests that wait

test(
  'an issuer that hangs under many pipelined requests holds a bounded number of them',
  { timeout: 90_000 },
  async (t) => {
    const issuer = await startIssuer(t, first);
    const isHanging = hang(issuer);
    const maxPending = 4;
    const events: AuthEvent[] = [];
    const trustedIssuers = [
      { issuer: 'one', jwks: issuer.url },
      { issuer: 'two', jwks: { keys: [second.publicKey] } },
    ];
    const { url } = await serve(
      t,
      withAuth(
        (_req, res) => {
          res.end(getUser().sub);
        },
        {
          keys: privateJwk,
          audience: AUDIENCE,
          trustedIssuers,
          maxPending,
          now: () => NOW,
          onEvent: (e) => events.push(e),
        },
      ),
    );
    const known = await mint('two', second);
    const ask = async (token: string): Promise<number> =>
      (await fetch(url, { headers: { authorization: `Bearer ${token}` } })).status;
    assert.equal(await ask(known), 200);
    const waiting = await mint('one', first);
    const request = `GET / HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer ${waiting}\r\n\r\n`;
    const sockets = Array.from({ length: 8 }, () => connect(Number(new URL(url).port), '127.0.0.1'));
    t.after(() => sockets.forEach((socket) => socket.destroy()));
    for (const socket of sockets) socket.on('error', () => {}).resume();
    const before = await used();
    const batch = request.repeat(100);
    for (const socket of sockets) for (let i = 0; i < 5; i += 1) socket.write(batch); // 4,000 requests at once
    const lanes = Math.max(1, Math.min(availableParallelism() + 1, POOL - 1));
    await until(() => events.some(({ type }) => type === 'overloaded'));
    const overloaded = events.find(({ type }) => type === 'overloaded');
    assert.equal(overloaded?.pending, 16 * (maxPending + lanes));
    for (let i = 0; i < 20; i += 1) assert.equal(await ask(known), 200);
    const others = events.filter(({ type, issuer: name }) => type === 'accepted' && name === 'two').slice(1);
    assert.equal(others.length, 20);
    for (const { cached, durationMs } of others) {
      assert.equal(cached, true);
      assert.ok(Number(durationMs) < 100, `a known token of another issuer waited ${durationMs} ms`);
    }
    assert.ok(await isHanging());
    assert.equal(issuer.hits.length, 1);
    for (const socket of sockets) socket.destroy();
    issuer.drop();
    await until(() => events.some(({ type }) => type === 'issuer.failed'));
    await sleep(500);
    const grown = (await used()) - before;
    assert.ok(grown < 32 * 2 ** 20, `${grown} octets more`);
    assert.equal(await ask(known), 200);
  },
);
