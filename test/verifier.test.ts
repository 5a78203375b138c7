// Cache, single flight and queue of the verifier, held by counting: operations, entries, places, order, memory.
import assert from 'node:assert/strict';
import { randomBytes } from 'node:crypto';
import { availableParallelism } from 'node:os';
import { test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import {
  type Auth,
  type AuthEvent,
  type AuthOptions,
  encryptToken,
  getUser,
  JWETokenVerifier,
  type VerifierOptions,
  withAuth,
  withAuthFetch,
} from 'mcp-auth-middleware';
import { used } from './support/memory.js';
import { countRsa, hold, rsa } from './support/rsa.js';
import { keyPair, outcome, root, run, type Scope, serve, until } from './support/support.js';
import { newPair, refused, seal, SIGNERS, signJws, untyped } from './support/tokens.js';

const { privateJwk, publicJwk } = await keyPair();
const pool = Number(process.env.UV_THREADPOOL_SIZE ?? 4);
const lanes = Math.max(1, Math.min(availableParallelism() + 1, pool - 1));
const [protectedHeader = ''] = (await encryptToken({}, publicJwk)).split('.');

const verifier = (options: VerifierOptions = {}): JWETokenVerifier =>
  new JWETokenVerifier({ keys: privateJwk, ...options });
const mint = (sub: string, claims: object = {}): Promise<string> => encryptToken({ sub, ...claims }, publicJwk);
const mintAll = (count: number, claims: object = {}): Promise<string[]> =>
  Promise.all(Array.from({ length: count }, (_, i) => mint(`user ${i}`, claims)));

/** Well-formed, with the right kid and lengths, below the modulus: only an RSA operation tells that it is forged. */
function forge(): string {
  const encryptedKey = randomBytes(256);
  encryptedKey[0] = 0x7f & Number(encryptedKey[0]);
  return [
    protectedHeader,
    ...[encryptedKey, randomBytes(12), randomBytes(40), randomBytes(16)].map((part) => part.toString('base64url')),
  ].join('.');
}

/** A server that says who is asking, and what it saw. */
async function start(scope: Scope, options: AuthOptions) {
  const events: AuthEvent[] = [];
  const handled: unknown[] = [];
  let arrived = 0;
  let left = 0;
  const listener = withAuth(
    (_req, res) => {
      handled.push(getUser().sub);
      res.end(getUser().sub);
    },
    { onEvent: (event) => events.push(event), ...options },
  );
  const { url } = await serve(scope, (req, res) => {
    arrived += 1;
    res.once('close', () => {
      if (!res.writableFinished) left += 1;
    });
    listener(req, res);
  });
  const get = (token: string, signal?: AbortSignal): Promise<Response> =>
    fetch(url, { headers: { authorization: `Bearer ${token}` }, signal: signal ?? null });
  return { get, events, handled, arrived: (): number => arrived, left: (): number => left };
}

test('1,000 simultaneous requests with one new token cost one RSA operation', async () => {
  const subject = verifier();
  const token = await mint('alice');
  let users: unknown[] = [];
  assert.equal(
    await countRsa(async () => {
      users = await Promise.all(Array.from({ length: 1000 }, async () => (await subject.verifyToken(token)).sub));
    }),
    1,
  );
  assert.deepEqual(
    users,
    Array.from({ length: 1000 }, () => 'alice'),
  );
});

test('200 simultaneous HTTP requests with one new token cost one RSA operation and all are answered', async (t) => {
  const { get, handled, arrived } = await start(t, { keys: privateJwk, maxPending: 13 }); // 16 * 13 and more may wait
  const token = await mint('alice');
  const release = hold(t);
  const { started } = rsa;
  const answers = Array.from({ length: 200 }, () => get(token));
  await until(() => arrived() === 200);
  assert.deepEqual(handled, []);
  release();
  for (const answer of await Promise.all(answers)) assert.equal(await answer.text(), 'alice');
  assert.equal(rsa.started - started, 1);
});

test('a forged token is shared by those who bring it at once, and never remembered', async () => {
  const subject = verifier();
  const forged = forge();
  for (const round of [1, 2, 3]) {
    const outcomes = new Set<string>();
    assert.equal(
      await countRsa(async () => {
        for (const one of await Promise.all(Array.from({ length: 100 }, () => outcome(subject.authenticate(forged)))))
          outcomes.add(one);
      }),
      1,
      `round ${round}`,
    );
    assert.deepEqual([...outcomes], ['undecryptable']);
  }
});

test('malformed tokens cost no RSA operation and no place in the queue', async () => {
  const subject = verifier({ maxPending: 0 });
  const token = await mint('alice');
  const part = token.split('.');
  const encode = (header: object): string => Buffer.from(JSON.stringify(header)).toString('base64url');
  const header = { alg: 'RSA-OAEP-256', enc: 'A256GCM', kid: publicJwk.kid };
  const replaced = (index: number, text: string): string => part.map((old, i) => (i === index ? text : old)).join('.');
  const malformed: Record<string, string> = {
    nothing: '',
    'four parts': part.slice(0, 4).join('.'),
    'six parts': `${token}.AAAA`,
    'too long': replaced(3, 'A'.repeat(16_384)),
    padding: `${token}==`,
    whitespace: `${token} `,
    'stray trailing bits': replaced(2, 'AAAAAAAAAAAAAAA_'.slice(0, 15)),
    'no JSON': replaced(0, 'AAAA'),
    'other alg': replaced(0, encode({ ...header, alg: 'RSA1_5' })),
    'alg of no key': replaced(0, encode({ ...header, alg: 'RSA-OAEP' })),
    'other enc': replaced(0, encode({ ...header, enc: 'A128GCM' })),
    zip: replaced(0, encode({ ...header, zip: 'DEF' })),
    crit: replaced(0, encode({ ...header, crit: [] })),
    'unknown kid': replaced(0, encode({ ...header, kid: 'other' })),
    'short encrypted key': replaced(1, randomBytes(255).toString('base64url')),
    'short IV': replaced(2, randomBytes(11).toString('base64url')),
    'short tag': replaced(4, randomBytes(4).toString('base64url')),
    ...Object.fromEntries(
      part.map((old, i) => [
        `an octet that is no base64url in segment ${i}`,
        replaced(i, `${old.slice(0, -2)}+${old.slice(-1)}`),
      ]),
    ),
  };
  assert.equal(
    await countRsa(async () => {
      for (const [name, bad] of Object.entries(malformed)) {
        assert.match(await outcome(subject.authenticate(bad)), /^(malformed|unknown_key)$/, name);
      }
      const flood = Array.from({ length: 1000 }, (_, i) => outcome(subject.authenticate(`${token}${i % 10}!`)));
      assert.deepEqual(new Set(await Promise.all(flood)), new Set(['malformed']));
    }),
    0,
  );
  assert.equal(await outcome(subject.authenticate(token)), 'accepted');
});

test('the cache keeps the tokens used last, as many as maxEntries', async () => {
  const subject = verifier({ cache: { maxEntries: 3 } });
  const [a = '', b = '', c = '', d = ''] = await mintAll(4);
  const cost = (token: string): Promise<number> => countRsa(() => subject.authenticate(token));
  assert.deepEqual([await cost(a), await cost(b), await cost(c)], [1, 1, 1]);
  assert.deepEqual([await cost(a), await cost(b), await cost(c)], [0, 0, 0]);
  assert.equal(await cost(a), 0); // now b is the one not used for longest
  assert.equal(await cost(d), 1);
  assert.deepEqual([await cost(c), await cost(a), await cost(d)], [0, 0, 0]);
  assert.equal(await cost(b), 1);
  assert.equal(await cost(c), 1); // c made room for b
});

test('the cache keeps 1,000 tokens unless told otherwise', async () => {
  const subject = verifier({ maxPending: 2000 });
  const tokens = await mintAll(1001);
  const all = (some: string[]): Promise<number> =>
    countRsa(() => Promise.all(some.map((token) => subject.authenticate(token))));
  assert.equal(await all(tokens.slice(0, 1000)), 1000);
  assert.equal(await all(tokens.slice(0, 1000)), 0);
  assert.equal(await all(tokens.slice(1000)), 1);
  assert.equal(await all(tokens.slice(1)), 0);
  assert.equal(await all(tokens.slice(0, 1)), 1);
});

test('the cache keeps at most 4 MiB of token text', async () => {
  const subject = verifier({ cache: { maxEntries: 100_000 }, maxPending: 1000 });
  const pad = 'x'.repeat(11_000);
  const [first = ''] = await mintAll(1, { pad });
  const fit = Math.floor(4_194_304 / first.length);
  const tokens = await Promise.all(
    Array.from({ length: fit + 1 }, (_, i) => mint(`user ${i}`.slice(-6).padStart(6), { pad: pad.slice(0, -1) })),
  );
  assert.equal(new Set(tokens.map((token) => token.length)).size, 1);
  assert.equal(Math.floor(4_194_304 / Number(tokens[0]?.length)), fit);
  const all = (some: string[]): Promise<number> =>
    countRsa(async () => {
      for (const token of some) await subject.authenticate(token);
    });
  assert.equal(await all(tokens.slice(0, fit)), fit);
  assert.equal(await all(tokens.slice(0, fit)), 0);
  assert.equal(await all(tokens.slice(fit)), 1);
  assert.equal(await all(tokens.slice(1)), 0);
  assert.equal(await all(tokens.slice(0, 1)), 1);
});

test('without a cache every use costs an operation, but simultaneous ones share it', async () => {
  const subject = verifier({ cache: false });
  const token = await mint('alice');
  assert.equal(
    await countRsa(async () => {
      for (let i = 0; i < 3; i += 1) await subject.authenticate(token);
    }),
    3,
  );
  assert.equal(await countRsa(() => Promise.all([subject.authenticate(token), subject.authenticate(token)])), 1);
});

test('a token without kid costs one operation when it is for the published key, wherever that stands', async () => {
  const [active, old, next] = await Promise.all([keyPair('active'), keyPair('old'), keyPair('next')]);
  const now = Math.floor(Date.now() / 1000);
  const keys = [
    { ...active.privateJwk, nbf: now - 10 },
    { ...old.privateJwk, nbf: now - 20 },
    { ...next.privateJwk, nbf: now + 3600 },
  ];
  for (const order of [
    [0, 1, 2],
    [1, 0, 2],
    [1, 2, 0],
    [2, 1, 0],
  ]) {
    const subject = verifier({ keys: { keys: order.flatMap((index) => keys[index] ?? []) } });
    const token = seal(active.publicJwk, { header: { kid: undefined }, plaintext: {} });
    assert.equal(await countRsa(() => subject.authenticate(token)), 1, `${order}`);
  }
});

test('times and audience of a known token are judged at every use, at no cost', async () => {
  const iat = 1_800_000_000;
  let now = iat;
  const subject = verifier({ now: () => now, clockTolerance: 10, maxTokenAge: 500, audience: 'here' });
  const cases: [claims: object, outcomes: [time: number, outcome: string][]][] = [
    [
      { exp: iat + 60, aud: 'here' },
      [
        [0, 'accepted'],
        [69, 'accepted'],
        [70, 'expired'],
        [69.9, 'accepted'],
        [71, 'expired'],
      ],
    ],
    [
      { exp: iat + 6000, nbf: iat + 60, aud: 'here' },
      [
        [0, 'not_yet_valid'],
        [49, 'not_yet_valid'],
        [50, 'accepted'],
        [0, 'not_yet_valid'],
      ],
    ],
    [
      { exp: iat + 6000, aud: 'here' },
      [
        [510, 'accepted'],
        [511, 'expired'],
        [-10, 'accepted'],
        [-11, 'not_yet_valid'],
      ],
    ],
    [
      { exp: iat + 60, aud: 'elsewhere' },
      [
        [0, 'audience'],
        [1, 'audience'],
      ],
    ],
  ];
  for (const [claims, outcomes] of cases) {
    const token = await mint('alice', { iat, ...claims });
    for (const [index, [time, expected]] of outcomes.entries()) {
      now = iat + time;
      let actual = '';
      assert.equal(
        await countRsa(async () => {
          actual = await outcome(subject.authenticate(token));
        }),
        index === 0 ? 1 : 0,
        `${time} s`,
      );
      assert.equal(actual, expected, `${JSON.stringify(claims)} after ${time} s`);
    }
  }
});

test('an expired token costs one RSA operation, however often it comes', async (t) => {
  const { get } = await start(t, { keys: privateJwk });
  const token = await mint('alice', { iat: 1000, exp: 2000 });
  assert.equal(
    await countRsa(async () => {
      for (let i = 0; i < 20; i += 1) {
        const answer = await get(token);
        assert.equal(answer.status, 401);
        assert.match(String(answer.headers.get('www-authenticate')), /expired/);
      }
    }),
    1,
  );
});

test('what a handler does to its user is never seen by the next request with the token', async () => {
  const subject = verifier();
  const token = await mint('alice', { scope: 'read', roles: ['user'], address: { city: 'Bern', tags: [{ a: 1 }] } });
  const { user, scopes, ...auth } = await subject.authenticate(token);
  const { roles, address } = user as unknown as { roles: string[]; address: { city: string; tags: { a: number }[] } };
  const attempts: (() => unknown)[] = [
    () => Object.assign(user, { sub: 'mallory' }),
    () => Object.assign(user, { admin: true }),
    () => {
      delete (user as Record<string, unknown>)['sub'];
    },
    () => Object.setPrototypeOf(user, { admin: true }),
    () => roles.push('admin'),
    () => {
      roles[0] = 'admin';
    },
    () => {
      address.city = 'Thun';
    },
    () => Object.assign(address.tags[0] ?? {}, { a: 2 }),
    () => (scopes as string[]).push('admin'),
  ];
  for (const attempt of attempts) assert.throws(attempt, TypeError, String(attempt));
  const again = await subject.authenticate(token);
  assert.throws(() => Object.assign(again, { signed: true }), TypeError);
  assert.equal(
    JSON.stringify(again.user),
    JSON.stringify({
      iat: user.iat,
      exp: user.exp,
      sub: 'alice',
      scope: 'read',
      roles: ['user'],
      address: { city: 'Bern', tags: [{ a: 1 }] },
    }),
  );
  assert.deepEqual(again.scopes, ['read']);
  assert.equal(again.signed, auth.signed);
  assert.equal((again.user as Record<string, unknown>)['admin'], undefined);
});

test('getAuthInfo gives every request its own object', async (t) => {
  const infos: { scopes: string[] }[] = [];
  const listener = withAuth(
    (req, res) => {
      const { auth } = req as unknown as { auth: { scopes: string[] } };
      auth.scopes.push('admin');
      infos.push(auth);
      res.end();
    },
    { keys: privateJwk },
  );
  const { url } = await serve(t, listener);
  const token = await mint('alice', { scope: 'read' });
  for (let i = 0; i < 2; i += 1) await fetch(url, { headers: { authorization: `Bearer ${token}` } });
  assert.deepEqual(
    infos.map(({ scopes }) => scopes),
    [
      ['read', 'admin'],
      ['read', 'admin'],
    ],
  );
});

const LANES =
  'no more operations run at once than there are lanes, over all verifiers, and each with a CryptoKey of its own';
test(LANES, async (t) => {
  const subjects = [verifier(), verifier(), verifier({ keys: (await keyPair('other')).privateJwk })];
  const tokens = await mintAll(20);
  await until(() => rsa.running === 0);
  rsa.most = 0;
  const release = hold(t);
  const work = subjects.flatMap((subject, i) => tokens.slice(i).map((token) => outcome(subject.authenticate(token))));
  await until(() => rsa.running === lanes);
  assert.equal(new Set(rsa.keys).size, lanes);
  release();
  await Promise.all(work);
  assert.equal(rsa.most, lanes);
});

/** How many threads libuv makes of the setting: atoi's reading, 1 for nothing or none. */
const pools: [setting: string, threads: number][] = [
  ['1', 1],
  ['2', 2],
  ['3', 3],
  ['4', 4],
  ['8', 8],
  ['0', 1],
  ['', 1],
  ['many', 1],
  ['3 threads', 3],
  ['0x10', 1],
];
for (const [setting, threads] of pools) {
  const expected = Math.max(1, Math.min(availableParallelism() + 1, threads - 1));
  const pool = `${threads} threads in the pool (UV_THREADPOOL_SIZE=${JSON.stringify(setting)})`;
  test(`with ${pool} there are as many lanes as threads and cores allow`, async () => {
    const program = `
      import { rsa } from './build/test/support/rsa.js';
      import { encryptToken, JWETokenVerifier } from 'mcp-auth-middleware';
      const keys = JSON.parse(process.env.KEYS);
      const { kty, n, e, kid, alg } = keys;
      const verifier = new JWETokenVerifier({ keys });
      const tokens = await Promise.all(
        Array.from({ length: 20 }, (_, i) => encryptToken({ i }, { kty, n, e, kid, alg })),
      );
      await Promise.all(tokens.map((token) => verifier.authenticate(token)));
      console.log(rsa.started, rsa.most);`;
    const env = { UV_THREADPOOL_SIZE: setting, KEYS: JSON.stringify(privateJwk) };
    const { code, stdout } = await run(process.execPath, ['--no-warnings', '--input-type=module', '-e', program], {
      cwd: root,
      env,
    });
    assert.deepEqual([code, stdout], [0, `20 ${expected}\n`]);
  });
}

test('new tokens are decrypted in the order in which they came', async () => {
  const subject = verifier();
  await Promise.all((await mintAll(lanes)).map((token) => subject.authenticate(token))); // every lane has its CryptoKey
  const tokens = await mintAll(50);
  const order: string[] = (rsa.order = []);
  await Promise.all(tokens.map((token) => subject.authenticate(token)));
  rsa.order = undefined;
  assert.deepEqual(
    order,
    tokens.map((token) => token.split('.')[1]),
  );
});

test('a waiting verifier is not overtaken by one that came later', async () => {
  const subjects = [verifier(), verifier()];
  // Every lane has its CryptoKeys before the order counts.
  for (const subject of subjects) await Promise.all((await mintAll(lanes)).map((token) => subject.authenticate(token)));
  const tokens = await mintAll(3 * lanes);
  const order: string[] = (rsa.order = []);
  await Promise.all(tokens.map((token, i) => subjects[i % 2]?.authenticate(token)));
  rsa.order = undefined;
  assert.deepEqual(
    order,
    tokens.map((token) => token.split('.')[1]),
  );
});

for (const maxPending of [0, 1, 7, 256]) {
  test(`with maxPending ${maxPending} so many new tokens wait beside the lanes, and the next gets 503`, async (t) => {
    const subject = verifier({ maxPending });
    const tokens = await mintAll(maxPending + lanes + 2);
    const release = hold(t);
    const outcomes = tokens.map((token) => outcome(subject.authenticate(token)));
    const late = await Promise.all(outcomes.slice(-2));
    release();
    assert.deepEqual(late, ['overloaded', 'overloaded']);
    assert.deepEqual(new Set(await Promise.all(outcomes.slice(0, -2))), new Set(['accepted']));
    assert.equal(await outcome(subject.authenticate(tokens.at(-1) ?? '')), 'accepted');
  });

  test(`with maxPending ${maxPending} sixteen times as many requests wait, and the next gets 503`, async (t) => {
    const subject = verifier({ maxPending, cache: false });
    const [token, known] = [await mint('alice'), await mint('known')];
    const caching = verifier({ maxPending });
    await caching.authenticate(known);
    const most = 16 * (maxPending + lanes);
    const release = hold(t);
    for (const one of [subject, caching]) {
      const waiting = Array.from({ length: most + 3 }, () => outcome(one.authenticate(token)));
      assert.deepEqual(new Set(await Promise.all(waiting.slice(most))), new Set(['overloaded']));
      assert.equal(await outcome(caching.authenticate(known)), 'accepted', 'a known token never waits');
      setImmediate(release);
      assert.deepEqual(new Set(await Promise.all(waiting.slice(0, most))), new Set(['accepted']));
      assert.equal(await outcome(one.authenticate(token)), 'accepted');
    }
  });
}

const OVERLOAD =
  'in overload known tokens are served, new ones get 503 with Retry-After, and afterwards all is as before';
test(OVERLOAD, async (t) => {
  const { get, handled, events, arrived } = await start(t, { keys: privateJwk, maxPending: 2 });
  const [known, fresh] = [await mint('known'), await mint('fresh')];
  assert.equal((await get(known)).status, 200);
  const release = hold(t);
  const { started } = rsa;
  const forged = Array.from({ length: 50 }, () => get(forge()));
  const waiting = 2 + lanes;
  await until(() => arrived() === 51 && events.filter(({ type }) => type === 'overloaded').length === 50 - waiting);
  assert.equal(await (await get(known)).text(), 'known');
  const refused = await get(fresh);
  assert.equal(refused.status, 503);
  assert.match(String(refused.headers.get('retry-after')), /^[1-9][0-9]*$/);
  assert.equal(refused.headers.get('cache-control'), 'no-store');
  assert.equal(Object(await refused.json()).error, 'temporarily_unavailable');
  release();
  const statuses = await Promise.all(forged.map(async (answer) => (await answer).status));
  assert.deepEqual(
    [401, 503].map((status) => statuses.filter((one) => one === status).length),
    [waiting, 50 - waiting],
  );
  assert.equal(rsa.started - started, waiting);
  assert.equal(await (await get(fresh)).text(), 'fresh');
  assert.deepEqual(handled, ['known', 'known', 'fresh']);
  const overloaded = events.find(({ type }) => type === 'overloaded');
  assert.equal(overloaded?.status, 503);
  assert.equal(overloaded?.pending, waiting);
});

test('a client that goes away never reaches the handler; its place stays until its token is decrypted', async (t) => {
  const { get, handled, arrived, left } = await start(t, { keys: privateJwk, maxPending: 1 });
  const running = await mintAll(lanes);
  const [waiting, late] = [await mint('waiting'), await mint('late')];
  const release = hold(t);
  const { started } = rsa;
  const first = running.map((token) => get(token));
  await until(() => rsa.running === lanes);
  const gone = new AbortController();
  const second = get(waiting, gone.signal);
  await until(() => arrived() === lanes + 1);
  assert.equal((await get(late)).status, 503);
  gone.abort();
  await assert.rejects(second, { name: 'AbortError' });
  await until(() => left() === 1); // the server has seen the connection close
  assert.equal((await get(late)).status, 503, 'nobody leaves the queue');
  release();
  const users = await Promise.all(first.map(async (answer) => (await answer).text()));
  assert.deepEqual(
    users,
    running.map((_, i) => `user ${i}`),
  );
  await until(() => rsa.started - started === lanes + 1 && rsa.running === 0);
  assert.equal(await (await get(late)).text(), 'late');
  assert.deepEqual(handled.toSorted(), [...users, 'late'].toSorted());
  assert.equal(await countRsa(async () => assert.equal(await (await get(waiting)).text(), 'waiting')), 0);
});

test('of two clients that wait with one token the one that leaves takes nothing from the other', async (t) => {
  const { get, handled, arrived, left } = await start(t, { keys: privateJwk });
  const shared = await mint('shared');
  const release = hold(t);
  const { started } = rsa;
  const gone = new AbortController();
  const leaver = get(shared, gone.signal);
  const stayer = get(shared);
  await until(() => arrived() === 2);
  gone.abort();
  await assert.rejects(leaver, { name: 'AbortError' });
  await until(() => left() === 1);
  release();
  assert.equal(await (await stayer).text(), 'shared');
  assert.deepEqual(handled, ['shared']);
  assert.equal(rsa.started - started, 1);
});

test('a fetch request that is aborted while it waits is answered with 503 and takes nobody along', async (t) => {
  const handler = withAuthFetch(() => new Response(getUser().sub), { verifier: verifier() });
  const gone = new AbortController();
  const release = hold(t);
  const asked = (await mintAll(5)).map((token, i) =>
    handler(
      new Request('http://server/', {
        headers: { authorization: `Bearer ${token}` },
        signal: i === 1 || i === 3 ? gone.signal : null,
      }),
    ),
  );
  gone.abort();
  release();
  const answers = await Promise.all(
    asked.map(async (answer) => {
      const { status } = await answer;
      return status === 200 ? (await answer).text() : status;
    }),
  );
  assert.deepEqual(answers, ['user 0', 503, 'user 2', 503, 'user 4']);
});

test('a key that expires while an operation is under way neither answers nor fills the cache', async (t) => {
  let now = 1_800_000_000;
  const subject = verifier({ keys: { ...privateJwk, exp: now + 10 }, now: () => now });
  const token = await mint('alice', { iat: now, exp: now + 3600 });
  const release = hold(t);
  const answer = outcome(subject.authenticate(token));
  await until(() => rsa.running === 1);
  now += 10;
  release();
  assert.notEqual(await answer, 'accepted');
  now -= 5;
  assert.equal(await countRsa(() => subject.authenticate(token)), 1);
  now += 5;
  assert.equal(await outcome(subject.authenticate(token)), 'no_key');
});

// ## Owners: one user cannot push out the others

const signer = newPair('ed25519');
const verifyKey = { ...signer.publicKey.export({ format: 'jwk' }), kty: 'OKP', kid: 'k', alg: 'EdDSA', use: 'sig' };
const issuer = { issuer: 'idp', jwks: { keys: [verifyKey] } };
/** A signed token, to be encrypted by whoever holds it, as often as they like. */
function signed(claims: object): string {
  const payload = { iss: 'idp', aud: 'here', exp: 4_000_000_000, ...claims };
  return signJws({ alg: 'EdDSA', kid: 'k' }, payload, (input) => SIGNERS['EdDSA']?.(input, signer.privateKey) ?? input);
}
const wrap = (jws: string): string => seal(publicJwk, { header: { cty: 'JWT' }, plaintext: jws });
const asserted = (claims: object): string => seal(publicJwk, { plaintext: claims });
/** So many tokens of one user. */
const of = (sub: string, count: number): string[] => Array.from({ length: count }, () => asserted({ sub }));
/** How many RSA operations the tokens cost, one after another. */
const operationsFor = (subject: JWETokenVerifier, tokens: string[]): Promise<number> =>
  countRsa(async () => {
    for (const token of tokens) await subject.authenticate(token);
  });

const floods: [what: string, options: VerifierOptions, make: (claims: { sub: string }) => () => string, pad: number][] =
  [
    [
      're-encrypts one signed token',
      { audience: 'here', trustedIssuers: [issuer] },
      (claims) => {
        const jws = signed(claims);
        return () => wrap(jws);
      },
      0,
    ],
    [
      're-encrypts one signed token of 15 KB',
      { audience: 'here', trustedIssuers: [issuer] },
      (claims) => {
        const jws = signed(claims);
        return () => wrap(jws);
      },
      8200,
    ],
    ['mints claims of one sub', {}, (claims) => () => asserted(claims), 0],
    ['mints claims of one sub with 15 KB', {}, (claims) => () => asserted(claims), 11_000],
    [
      'mints claims of one sub that differ',
      {},
      (claims) => () => asserted({ ...claims, jti: randomBytes(8).toString('hex') }),
      0,
    ],
    [
      'mints claims without sub that differ in jti',
      {},
      ({ sub: name, ...claims }) =>
        () =>
          asserted({ ...claims, name, jti: randomBytes(8).toString('hex') }),
      0,
    ],
  ];
for (const [what, options, make, pad] of floods) {
  test(`one user who ${what} for ever costs others none of their known tokens`, async () => {
    const subject = verifier({ ...options, cache: { maxEntries: pad > 0 ? 100_000 : 200 }, maxPending: 2000 });
    const others = Array.from({ length: 60 }, (_, i) => make({ sub: `user ${i % 30}` })()); // two tokens of each
    await Promise.all(others.map((token) => subject.authenticate(token)));
    const again = make({ sub: 'mallory', ...(pad > 0 && { pad: 'x'.repeat(pad) }) });
    const flood = Array.from({ length: 400 }, again);
    const use = (tokens: string[]): Promise<number> => operationsFor(subject, tokens);
    assert.equal(await use(flood), 400);
    assert.equal(await use(others), 0);
    assert.equal(await use(flood.slice(-100)), 0, 'what room there is, is used');
    assert.equal(await use(flood.slice(0, 1)), 1, 'the oldest of the flood went');
    assert.equal(await use(others), 0);
  });
}

test('who floods gives up its own, also where another had many before', async () => {
  const subject = verifier({ cache: { maxEntries: 100 } });
  const use = (tokens: string[]): Promise<number> => operationsFor(subject, tokens);
  const many = of('ada', 60);
  assert.equal(await use(many), 60);
  assert.equal(await use(of('eve', 200)), 200);
  assert.equal(await use(many), 0);
});

test('with two who have many, each gives up its own, and who has at most 16 gives up none', async () => {
  const subject = verifier({ cache: { maxEntries: 100 } });
  const use = (tokens: string[]): Promise<number> => operationsFor(subject, tokens);
  const modest = of('modest', 16);
  assert.equal(await use(modest), 16);
  assert.equal(await use([...of('one', 200), ...of('two', 200)]), 400);
  assert.equal(await use(modest), 0);
  const many = Array.from({ length: 100 }, (_, i) => asserted({ sub: `user ${i}` }));
  assert.equal(await use(many.slice(0, 60)), 60);
  assert.equal(await use(modest), 0, 'as long as somebody has more than 16');
});

// ## isRevoked

type Answer = 'accepted' | 'revoked' | 'revocation_unavailable';
const thrown = (): never => {
  throw new Error('the store is down');
};
const rules: [what: string, answer: () => unknown, expected: Answer][] = [
  ['false', () => false, 'accepted'],
  ['true', () => true, 'revoked'],
  ['a promise of false', async () => false, 'accepted'],
  ['a promise of true', async () => true, 'revoked'],
  ['false some time later', () => sleep(20, false), 'accepted'],
  ['true some time later', () => sleep(20, true), 'revoked'],
  ['an exception', thrown, 'revocation_unavailable'],
  ['a rejection', async () => thrown(), 'revocation_unavailable'],
  ['a rejection some time later', () => sleep(20).then(thrown), 'revocation_unavailable'],
  ...[undefined, null, 0, 1, '', 'false', 'true', {}, [], Symbol('no')].flatMap(
    (value): [string, () => unknown, Answer][] => [
      [`no boolean: ${String(JSON.stringify(value) ?? typeof value)}`, () => value, 'revocation_unavailable'],
      [`a promise of none: ${JSON.stringify(value) ?? typeof value}`, async () => value, 'revocation_unavailable'],
    ],
  ),
  ['an own Boolean object', () => Object(false), 'revocation_unavailable'],
  ['a thenable of false', () => ({ then: (resolve: (value: unknown) => void) => resolve(false) }), 'accepted'],
  ['a thenable that throws', () => ({ then: thrown }), 'revocation_unavailable'],
];
for (const [what, answer, expected] of rules) {
  test(`isRevoked that gives ${what}: ${expected}, for a new token and a known one, asked at every use`, async (t) => {
    let now = answer;
    const asked: Auth[] = [];
    const isRevoked = untyped<(auth: Auth) => boolean>((auth: Auth) => {
      asked.push(auth);
      return now();
    });
    const { get, handled } = await start(t, { keys: privateJwk, isRevoked });
    const token = await mint('alice', { scope: 'read' });
    const statuses = { accepted: 200, revoked: 401, revocation_unavailable: 503 };
    for (const use of [1, 2, 3]) {
      const { status, headers } = await get(token);
      assert.equal(status, statuses[expected]);
      assert.equal(headers.get('retry-after'), status === 503 ? '1' : null);
      if (status === 401) {
        const challenge = 'Bearer error="invalid_token", error_description="The access token has been revoked"';
        assert.equal(headers.get('www-authenticate'), challenge);
      }
      assert.equal(asked.length, use);
    }
    now = () => false;
    assert.equal((await get(token)).status, 200, 'nothing of the answer is remembered');
    assert.equal(handled.length, expected === 'accepted' ? 4 : 1);
    for (const auth of asked) {
      assert.deepEqual([auth.user.sub, auth.token, auth.scopes, auth.signed], ['alice', token, ['read'], false]);
      assert.ok(Object.isFrozen(auth));
    }
  });
}

test('isRevoked is asked after everything that refuses a token, and of no anonymous request', async () => {
  let asked = 0;
  let now = 1_800_000_000;
  const isRevoked = (): boolean => {
    asked += 1;
    return false;
  };
  const subject = verifier({ now: () => now, audience: 'here', isRevoked });
  const tokens: [claims: object, reason: string][] = [
    [{ aud: 'there' }, 'audience'],
    [{}, 'audience'],
    [{ aud: 'here', exp: now - 100 }, 'expired'],
    [{ aud: 'here', nbf: now + 100 }, 'not_yet_valid'],
    [{ aud: 7 }, 'claims'],
  ];
  for (const [claims, reason] of tokens) {
    const token = asserted(claims);
    for (const _use of [1, 2]) assert.equal(await outcome(subject.authenticate(token)), reason);
  }
  assert.equal(await outcome(subject.authenticate(forge())), 'undecryptable');
  assert.equal(asked, 0);
  const token = asserted({ aud: 'here', exp: now + 100 });
  assert.equal(await outcome(subject.authenticate(token)), 'accepted');
  now += 1000;
  assert.equal(await outcome(subject.authenticate(token)), 'expired');
  assert.equal(asked, 1);
});

for (const [what, change] of [
  ['the token expires', (clock) => (clock.now += 100)],
  ['its key expires', (clock) => (clock.now += 50)],
] satisfies [string, (clock: { now: number }) => void][]) {
  test(`isRevoked that answers after ${what} answers too late, for a new token and a known one`, async () => {
    const clock = { now: 1_800_000_000 };
    const privateKeys = { keys: [{ ...privateJwk, exp: clock.now + (what === 'its key expires' ? 50 : 1000) }] };
    let decide = (): void => {};
    const isRevoked = (): Promise<boolean> => new Promise((resolve) => (decide = () => resolve(false)));
    const subject = new JWETokenVerifier({ keys: privateKeys, now: () => clock.now, clockTolerance: 0, isRevoked });
    const token = asserted({ sub: 'alice', exp: clock.now + 100 });
    const expected = what === 'its key expires' ? 'unknown_key' : 'expired';
    const begin = clock.now;
    for (const _use of ['new', 'known']) {
      clock.now = begin;
      const use = async (): Promise<Promise<string>[]> => {
        const none = (): void => assert.fail('not asked yet');
        decide = none;
        const asked = outcome(subject.authenticate(token));
        await until(() => decide !== none);
        return [asked];
      };
      const [accepted] = await use();
      decide();
      assert.equal(await accepted, 'accepted');
      const [late] = await use();
      change(clock);
      decide();
      assert.equal(await late, expected);
    }
  });
}

test('isRevoked that hangs is given up after 5 s, and who waits for it counts as waiting', async (t) => {
  const maxPending = 1;
  const most = 16 * (maxPending + lanes);
  const isRevoked = ({ user }: Auth): boolean | Promise<boolean> =>
    user.sub === 'slow' ? new Promise(() => {}) : false;
  const { get, events } = await start(t, { keys: privateJwk, maxPending, isRevoked });
  const [slow, quick] = [await mint('slow'), await mint('quick')];
  assert.equal((await get(quick)).status, 200);
  const began = performance.now();
  const first = get(slow);
  await until(() => rsa.running === 0);
  await sleep(100);
  assert.equal((await get('x')).status, 401);
  assert.equal(events.at(-1)?.pending, 1, 'each counts once');
  const known = Array.from({ length: most + 4 }, () => get(slow)); // by now a known token
  await until(() => events.filter(({ type }) => type === 'overloaded').length === 5);
  assert.equal(events.at(-1)?.pending, most);
  for (let i = 0; i < 10; i += 1) assert.equal((await get(quick)).status, 200, 'what need not wait does not');
  const statuses = await Promise.all([first, ...known].map(async (answer) => (await answer).status));
  const ms = performance.now() - began;
  assert.ok(ms > 4900 && ms < 9000, `${ms} ms`);
  assert.deepEqual(new Set(statuses), new Set([503]));
  const given = events.filter(({ reason }) => reason === 'revocation_unavailable');
  assert.equal(given.length, most);
  for (const { type, status, keyId } of given) {
    assert.deepEqual([type, status, keyId], ['rejected', 503, publicJwk.kid]);
  }
});

test('a revoked token is refused like any invalid one, with a description of its own', async () => {
  const subject = verifier({ isRevoked: () => true });
  const token = await mint('alice');
  for (const _use of [1, 2]) {
    await subject.authenticate(token).then(
      () => assert.fail('accepted'),
      (error: unknown) => {
        const { code, status, message, reason, keyId } = Object(error);
        const expected = ['invalid_token', 401, 'The access token has been revoked', 'revoked', publicJwk.kid];
        assert.deepEqual([code, status, message, reason, keyId], expected);
      },
    );
  }
  await refused(subject.authenticate(forge()), 'undecryptable');
});

// ## Memory

test('memory is the same after a million distinct forged tokens as before', async () => {
  const subject = verifier();
  const known = await mint('alice');
  const unknownKey = Buffer.from(JSON.stringify({ alg: 'RSA-OAEP-256', enc: 'A256GCM', kid: 'x' })).toString(
    'base64url',
  );
  const [, ...rest] = forge().split('.');
  const flood = async (from: number, to: number): Promise<void> => {
    for (let i = from; i < to;) {
      const batch: Promise<string>[] = [];
      // One in a hundred has what it takes to be looked for among the keys; the others end at the bytes.
      for (const end = Math.min(to, i + 200); i < end; i += 1) {
        batch.push(
          outcome(
            subject.authenticate(
              i % 100 === 0
                ? [unknownKey, ...rest.slice(0, -1), Buffer.alloc(16, i).toString('base64url')].join('.')
                : `${i}.${protectedHeader}`,
            ),
          ),
        );
      }
      assert.ok(!(await Promise.all(batch)).includes('accepted'));
    }
  };
  await subject.authenticate(known);
  await flood(0, 20_000);
  const before = await used();
  assert.equal(await countRsa(() => flood(20_000, 1_020_000)), 0);
  const grown = (await used()) - before;
  assert.ok(grown < 2 ** 20, `${grown} octets more`); // a word for each would be 8 MB
  assert.equal(await countRsa(() => subject.authenticate(known)), 0);
});

test('memory is the same after 4,000 forged tokens that cost an operation each', async () => {
  const subject = verifier();
  const flood = async (count: number): Promise<void> => {
    for (let i = 0; i < count; i += 200) {
      const outcomes = await Promise.all(Array.from({ length: 200 }, () => outcome(subject.authenticate(forge()))));
      assert.deepEqual(new Set(outcomes), new Set(['undecryptable']));
    }
  };
  await flood(1000);
  const before = await used();
  assert.equal(await countRsa(() => flood(4000)), 4000);
  const grown = (await used()) - before;
  assert.ok(grown < 2 ** 20, `${grown} octets more`); // the tokens have 2 MB
  assert.equal(await outcome(subject.authenticate(await mint('alice'))), 'accepted');
});
