// Trusted issuers by URL: how their key sets are fetched, kept, refreshed and lost, against a real server and with a
// clock of our own.
import assert from 'node:assert/strict';
import { generateKeyPairSync } from 'node:crypto';
import { once } from 'node:events';
import type { RequestListener } from 'node:http';
import { test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { setFlagsFromString } from 'node:v8';
import { runInNewContext } from 'node:vm';
import { gzipSync } from 'node:zlib';
import {
  type AuthEvent,
  type AuthOptions,
  encryptToken,
  getAuth,
  type Jwk,
  JWETokenVerifier,
  KeyError,
  type PrivateSigningJwk,
  withAuth,
} from 'mcp-auth-middleware';
import { countRsa } from './support/rsa.js';
import { keyPair, type Scope, serve, until } from './support/support.js';

const NOW = 1_800_000_000;
const AUDIENCE = 'https://mcp.example';
const { privateJwk, publicJwk } = await keyPair();

interface SigningKey {
  privateKey: PrivateSigningJwk;
  publicKey: Jwk;
}
function signingKey(kid: string | undefined): SigningKey {
  const { kty, crv, x, d } = generateKeyPairSync('ed25519').privateKey.export({ format: 'jwk' });
  if (!kty || !d) throw new Error('an Ed25519 key has these');
  return { privateKey: { kty, crv, x, d, kid }, publicKey: { kty, crv, x, kid, alg: 'EdDSA', use: 'sig' } };
}
const [first, second, third] = [signingKey('first'), signingKey('second'), signingKey('third')];

const mint = (issuer: string, { privateKey }: SigningKey, sub = 'alice'): Promise<string> =>
  encryptToken({ sub, iat: NOW, exp: NOW + 10_000_000 }, publicJwk, {
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
async function start(scope: Scope, issuers: Record<string, URL | { keys: Jwk[] }>, options: AuthOptions = {}) {
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
        onEvent: (event) => {
          if (event.type.startsWith('issuer.')) events.push(event);
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
const UNREACHABLE = { type: 'issuer.failed', issuer: 'one', reason: 'unreachable' };
const MALFORMED = { type: 'issuer.failed', issuer: 'one', reason: 'malformed' };

setFlagsFromString('--expose-gc');
const collect: () => void = runInNewContext('gc');

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

test('fetches nothing before the first token, and never the changed URL object', async (t) => {
  const issuer = await startIssuer(t, first);
  const url = new URL(issuer.url);
  const { ask } = await start(t, { one: url });
  url.pathname = '/elsewhere';
  assert.deepEqual(issuer.hits, []);
  assert.equal(await ask(await mint('one', first)), 200);
  assert.deepEqual(issuer.hits, ['/jwks.json']);
});

// ## What is no key set

const answers: [what: string, answer: RequestListener, event: object][] = [
  ['an error', answerError, MALFORMED],
  [
    'not found, with a key set',
    (_req, res) => {
      res.writeHead(404).end(JSON.stringify({ keys: [first.publicKey] }));
    },
    MALFORMED,
  ],
  [
    'nothing',
    (_req, res) => {
      res.end();
    },
    MALFORMED,
  ],
  [
    'no JSON',
    (_req, res) => {
      res.end('<html>');
    },
    MALFORMED,
  ],
  [
    'an array',
    (_req, res) => {
      res.end(JSON.stringify([first.publicKey]));
    },
    MALFORMED,
  ],
  [
    'no keys',
    (_req, res) => {
      res.end('{"keys":[]}');
    },
    MALFORMED,
  ],
  [
    'a private key',
    (_req, res) => {
      res.end(JSON.stringify({ keys: [first.privateKey] }));
    },
    MALFORMED,
  ],
  [
    'keys for encryption only',
    (_req, res) => {
      res.end(JSON.stringify({ keys: [publicJwk] }));
    },
    MALFORMED,
  ],
  [
    'a closed connection',
    (req) => {
      req.socket.destroy();
    },
    UNREACHABLE,
  ],
  [
    'half an answer',
    (req, res) => {
      res.writeHead(200, { 'content-length': '5000' });
      res.write('{"keys":[');
      setImmediate(() => req.socket.destroy());
    },
    UNREACHABLE,
  ],
];
for (const [what, answer, event] of answers) {
  test(`an issuer that answers with ${what} draws 503, one event, and recovers`, async (t) => {
    const issuer = await startIssuer(t, first);
    const good = issuer.answer;
    issuer.answer = answer;
    const { clock, events, get, ask } = await start(t, { one: issuer.url });
    const token = await mint('one', first);
    const refused = await get(token);
    assert.equal(refused.status, 503);
    assert.match(String(refused.headers.get('retry-after')), /^[1-9]/);
    assert.equal(Object(await refused.json()).error, 'temporarily_unavailable');
    assert.deepEqual(events[0], event);
    issuer.answer = good;
    clock.now += 30;
    assert.equal(await ask(token), 200);
    assert.deepEqual(events.at(-1), FETCHED);
  });
}

for (const status of [301, 302, 303, 307, 308]) {
  test(`a redirect with ${status} is not followed`, async (t) => {
    const issuer = await startIssuer(t, first);
    const good = issuer.answer;
    issuer.answer = (req, res) => {
      if (req.url === '/elsewhere') good(req, res);
      else res.writeHead(status, { location: '/elsewhere' }).end();
    };
    const { events, ask } = await start(t, { one: issuer.url });
    assert.equal(await ask(await mint('one', first)), 503);
    assert.ok(!issuer.hits.includes('/elsewhere'));
    assert.equal(events[0]?.type, 'issuer.failed');
  });
}

for (const [octets, accepted] of [
  [65_536, true],
  [65_537, false],
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
      const { ask } = await start(t, { one: issuer.url });
      assert.equal(await ask(await mint('one', first)), accepted ? 200 : 503);
    }
  });
}

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
  assert.deepEqual(events[0], MALFORMED);
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
  issuer.answer = (_req, res) => {
    res.end(JSON.stringify({ keys: [...odd, first.publicKey] }));
  };
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
  await Promise.all(
    [silent, slow].map(async (issuer) => {
      const { events, ask } = await start(t, { one: issuer.url });
      assert.equal(await ask(token), 503);
      assert.deepEqual(events[0], UNREACHABLE);
    }),
  );
});

// ## Keeping a set

test('a set is used for 10 min, then fetched again by the next token', async (t) => {
  const issuer = await startIssuer(t, first);
  const { clock, events, ask } = await start(t, { one: issuer.url });
  const at = async (seconds: number): Promise<number> => {
    clock.now = NOW + seconds;
    assert.equal(await ask(await mint('one', first, `at ${seconds}`)), 200);
    return issuer.hits.length;
  };
  assert.deepEqual(
    [await at(0), await at(1), await at(599), await at(600), await at(1199), await at(1200)],
    [1, 1, 1, 2, 2, 3],
  );
  assert.deepEqual(events, [FETCHED, FETCHED, FETCHED]);
});

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

const UNKNOWN = 'an unknown kid fetches the set at once, and then every 30 s at most, counted from the last such fetch';
test(UNKNOWN, async (t) => {
  const issuer = await startIssuer(t, first);
  const { clock, ask } = await start(t, { one: issuer.url });
  const at = async (seconds: number, key: SigningKey): Promise<[status: number, hits: number]> => {
    clock.now = NOW + seconds;
    return [await ask(await mint('one', key, `at ${seconds}`)), issuer.hits.length];
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

test('a key that its issuer withdrew takes its known tokens with it, and only those', async (t) => {
  const issuer = await startIssuer(t, first, second);
  const { clock, ask } = await start(t, { one: issuer.url });
  const tokens = [await mint('one', first), await mint('one', second)];
  for (const token of tokens) assert.equal(await ask(token), 200);
  assert.equal(
    await countRsa(async () => {
      for (const token of tokens) assert.equal(await ask(token), 200);
    }),
    0,
  );
  issuer.keys = [second];
  clock.now += 600;
  assert.equal(await ask(tokens[0] ?? ''), 401); // the first to find the set old waits for the new one
  assert.equal(await countRsa(async () => assert.equal(await ask(tokens[1] ?? ''), 200)), 0);
  assert.equal(issuer.hits.length, 3); // the last for a kid that had become unknown
});

test('another key under the same kid takes the known tokens of the first with it', async (t) => {
  const issuer = await startIssuer(t, first);
  const { clock, events, ask } = await start(t, { one: issuer.url });
  const [old, impostor] = [await mint('one', first), signingKey('first')];
  assert.equal(await ask(old), 200);
  issuer.keys = [impostor];
  clock.now += 600;
  assert.equal(await ask(await mint('one', impostor)), 200);
  assert.equal(events.length, 2);
  assert.equal(await ask(old), 401);
});

// ## Down

test('the last good set serves for 24 h while the issuer is down, then 503 until it is back', async (t) => {
  const issuer = await startIssuer(t, first);
  const good = issuer.answer;
  const { clock, events, ask } = await start(t, { one: issuer.url });
  const known = await mint('one', first);
  assert.equal(await ask(known), 200);
  issuer.answer = answerError;
  const at = async (seconds: number): Promise<number[]> => {
    clock.now = NOW + seconds;
    return [await ask(known), await ask(await mint('one', first, `at ${seconds}`))];
  };
  for (const seconds of [600, 3600, 86_399]) assert.deepEqual(await at(seconds), [200, 200], `${seconds} s`);
  assert.deepEqual(await at(86_400), [503, 503]);
  assert.ok(events.slice(1).every(({ type }) => type === 'issuer.failed'));
  issuer.answer = good;
  assert.deepEqual(await at(86_430), [200, 200]);
  assert.deepEqual(events.at(-1), FETCHED);
});

test('while an issuer with a set is down it is asked every 30 s at most', async (t) => {
  const issuer = await startIssuer(t, first);
  const { clock, ask } = await start(t, { one: issuer.url });
  assert.equal(await ask(await mint('one', first)), 200);
  issuer.answer = answerError;
  for (let seconds = 600; seconds < 660; seconds += 1) {
    clock.now = NOW + seconds;
    assert.equal(await ask(await mint('one', first, `at ${seconds}`)), 200);
  }
  assert.equal(issuer.hits.length, 3); // at 0, 600 and 630 s
});

test('a failed fetch keeps the set that was there, with its known tokens', async (t) => {
  const issuer = await startIssuer(t, first);
  const { clock, events, ask } = await start(t, { one: issuer.url });
  const known = await mint('one', first);
  assert.equal(await ask(known), 200);
  issuer.answer = (_req, res) => {
    res.end('{"keys":[]}');
  };
  clock.now += 600;
  assert.equal(await ask(await mint('one', first, 'bob')), 200);
  assert.deepEqual(events, [FETCHED, MALFORMED]);
  assert.equal(await countRsa(async () => assert.equal(await ask(known), 200)), 0);
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
  assert.equal(await waiting, 401);
});

test('an issuer that hangs does not delay tokens of one whose keys have to be fetched', async (t) => {
  const [silent, other] = [await startIssuer(t, first), await startIssuer(t, second)];
  const { clock, ask } = await start(t, { silent: silent.url, other: other.url });
  for (const seconds of [0, 600, 1200]) {
    // never fetched, and twice too old
    clock.now = NOW + seconds;
    const isHanging = hang(silent);
    assert.equal(await ask(await mint('other', second, `at ${seconds}`)), 200);
    assert.ok(await isHanging(), `waited, after ${seconds} s`);
    silent.drop();
  }
});

test('a known token waits for the keys of its issuer once, and not again while that is down', async (t) => {
  const issuer = await startIssuer(t, first);
  const { clock, events, ask } = await start(t, { one: issuer.url });
  const known = await mint('one', first);
  assert.equal(await ask(known), 200);
  clock.now += 600;
  issuer.answer = answerError;
  assert.equal(await ask(known), 200);
  assert.deepEqual(events, [FETCHED, MALFORMED]);
  clock.now += 30;
  const isHanging = hang(issuer);
  assert.equal(
    await countRsa(async () => {
      for (let i = 0; i < 3; i += 1) assert.equal(await ask(known), 200);
    }),
    0,
  );
  assert.equal(await ask(await mint('one', first, 'bob')), 200); // nor does a new one
  assert.ok(await isHanging());
  assert.equal(issuer.hits.length, 3);
  issuer.answer = answerKeys(issuer);
  issuer.keys = [second];
  issuer.drop();
  await until(() => events.length === 3);
  clock.now += 30;
  assert.equal(await ask(known), 200); // starts the fetch that finds the issuer again
  await until(() => events.length === 4);
  assert.equal(await ask(known), 401);
});

test('a token asks an issuer that is down once', async (t) => {
  const issuer = await startIssuer(t, first);
  issuer.answer = answerError;
  const { ask } = await start(t, { one: issuer.url });
  assert.equal(await ask(await mint('one', first)), 503);
  assert.equal(issuer.hits.length, 1);
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
