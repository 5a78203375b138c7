// Cache, single flight and queue of the verifier, held by counting: operations, entries, places, order, memory.
import assert from 'node:assert/strict';
import { randomBytes } from 'node:crypto';
import { availableParallelism } from 'node:os';
import { test } from 'node:test';
import { setFlagsFromString } from 'node:v8';
import { runInNewContext } from 'node:vm';
import {
  type AuthEvent,
  type AuthOptions,
  encryptToken,
  getUser,
  JWETokenVerifier,
  type VerifierOptions,
  withAuth,
  withAuthFetch,
} from 'mcp-auth-middleware';
import { countRsa, hold, rsa } from './support/rsa.js';
import { keyPair, outcome, root, run, type Scope, serve, until } from './support/support.js';
import { seal } from './support/tokens.js';

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

const ONE_LANE = { concurrency: 1, maxPending: 1 };

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
  const { get, handled, arrived } = await start(t, { keys: privateJwk, ...ONE_LANE });
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
  const subject = verifier({ concurrency: 1, maxPending: 0 });
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
  test(`with ${pool} there are ${expected} lanes`, async () => {
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

test('concurrency limits one verifier and leaves the other lanes to others', async (t) => {
  const [narrow, other] = [verifier({ concurrency: 1 }), verifier()];
  const tokens = await mintAll(10);
  const release = hold(t);
  await until(() => rsa.running === 0);
  const all = tokens.map((token) => narrow.authenticate(token));
  await until(() => rsa.running > 0);
  for (let i = 0; i < 5; i += 1) await new Promise(setImmediate);
  assert.equal(rsa.running, 1);
  all.push(...tokens.map((token) => other.authenticate(token)));
  await until(() => rsa.running === lanes);
  release();
  await Promise.all(all);
  rsa.most = 0;
  await Promise.all((await mintAll(30)).map((token) => narrow.authenticate(token)));
  assert.equal(rsa.most, 1);
});

test('new tokens are answered in the order in which they came', async () => {
  const subject = verifier({ concurrency: 1 });
  const order: number[] = [];
  await Promise.all((await mintAll(50)).map((token, i) => subject.authenticate(token).then(() => order.push(i))));
  assert.deepEqual(
    order,
    Array.from({ length: 50 }, (_, i) => i),
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
  test(`with maxPending ${maxPending} so many new tokens wait, and the next is refused with 503`, async () => {
    const subject = verifier({ concurrency: 1, maxPending });
    const tokens = await mintAll(maxPending + 3);
    const outcomes = await Promise.all(tokens.map((token) => outcome(subject.authenticate(token))));
    assert.deepEqual(
      outcomes,
      tokens.map((_, i) => (i < maxPending + 1 ? 'accepted' : 'overloaded')),
    );
    assert.equal(await outcome(subject.authenticate(tokens.at(-1) ?? '')), 'accepted');
  });
}

const OVERLOAD =
  'in overload known tokens are served, new ones get 503 with Retry-After, and afterwards all is as before';
test(OVERLOAD, async (t) => {
  const { get, handled, events, arrived } = await start(t, { keys: privateJwk, concurrency: 1, maxPending: 2 });
  const [known, fresh] = [await mint('known'), await mint('fresh')];
  assert.equal((await get(known)).status, 200);
  const release = hold(t);
  const { started } = rsa;
  const forged = Array.from({ length: 50 }, () => get(forge()));
  await until(() => arrived() === 51 && events.filter(({ type }) => type === 'overloaded').length === 47);
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
    [3, 47],
  );
  assert.equal(rsa.started - started, 3);
  assert.equal(await (await get(fresh)).text(), 'fresh');
  assert.deepEqual(handled, ['known', 'known', 'fresh']);
  const overloaded = events.find(({ type }) => type === 'overloaded');
  assert.equal(overloaded?.status, 503);
  assert.ok(Number(overloaded?.pending) >= 2);
});

test('a client that goes away frees its place, costs nothing and never reaches the handler', async (t) => {
  const { get, handled, arrived, left } = await start(t, { keys: privateJwk, ...ONE_LANE });
  const [running = '', waiting = '', late = ''] = await mintAll(3);
  const release = hold(t);
  const { started } = rsa;
  const first = get(running);
  await until(() => rsa.running === 1);
  const gone = new AbortController();
  const second = get(waiting, gone.signal);
  await until(() => arrived() === 2);
  assert.equal((await get(late)).status, 503);
  gone.abort();
  await assert.rejects(second, { name: 'AbortError' });
  await until(() => left() === 1); // the place is free once the server has seen the connection close
  const third = get(late);
  await until(() => arrived() === 4);
  release();
  assert.equal(await (await first).text(), 'user 0');
  assert.equal(await (await third).text(), 'user 2');
  assert.deepEqual(handled, ['user 0', 'user 2']);
  assert.equal(rsa.started - started, 2);
});

test('a place that two clients share stays until both are gone', async (t) => {
  const { get, handled, arrived, left } = await start(t, { keys: privateJwk, ...ONE_LANE });
  const [running = '', shared = ''] = await mintAll(2);
  const release = hold(t);
  const first = get(running);
  await until(() => rsa.running === 1);
  const gone = new AbortController();
  const leaver = get(shared, gone.signal);
  const stayer = get(shared);
  await until(() => arrived() === 3);
  gone.abort();
  await assert.rejects(leaver, { name: 'AbortError' });
  await until(() => left() === 1);
  release();
  assert.equal((await first).status, 200);
  assert.equal(await (await stayer).text(), 'user 1');
  assert.deepEqual(handled, ['user 0', 'user 1']);
});

test('who leaves the queue is answered and takes nobody along', async (t) => {
  const handler = withAuthFetch(() => new Response(getUser().sub), { verifier: verifier({ concurrency: 1 }) });
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

test('an aborted fetch request frees its place as well', async (t) => {
  const subject = verifier(ONE_LANE);
  const handled: unknown[] = [];
  const handler = withAuthFetch(
    () => {
      handled.push(getUser().sub);
      return new Response(getUser().sub);
    },
    { verifier: subject },
  );
  const [running = '', waiting = '', late = ''] = await mintAll(3);
  const ask = (token: string, signal?: AbortSignal): Promise<Response> =>
    handler(new Request('http://server/', { headers: { authorization: `Bearer ${token}` }, signal: signal ?? null }));
  const release = hold(t);
  const { started } = rsa;
  const gone = new AbortController();
  const [first, second] = [ask(running), ask(waiting, gone.signal)];
  second.catch(() => {}); // looked at below
  assert.equal((await ask(late)).status, 503);
  gone.abort();
  const third = ask(late);
  release();
  assert.deepEqual([await (await first).text(), await (await third).text()], ['user 0', 'user 2']);
  assert.deepEqual(handled, ['user 0', 'user 2']);
  assert.equal(rsa.started - started, 2);
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

setFlagsFromString('--expose-gc');
const collect: () => void = runInNewContext('gc');

/** Octets that are still in use, on the heap and beside it. */
async function used(): Promise<number> {
  for (let i = 0; i < 3; i += 1) {
    await new Promise(setImmediate);
    collect();
  }
  const { heapUsed, external } = process.memoryUsage();
  return heapUsed + external;
}

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
