// The key file: what a server refuses to start with, and how it follows the file while it runs.
import assert from 'node:assert/strict';
import { generateKeyPairSync, generatePrimeSync } from 'node:crypto';
import {
  chmodSync,
  mkdirSync,
  mkdtempSync,
  renameSync,
  rmSync,
  statSync,
  symlinkSync,
  truncateSync,
  utimesSync,
  writeFileSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { after, test } from 'node:test';
import { pathToFileURL } from 'node:url';
import { CompactEncrypt, importJWK } from 'jose';
import {
  type AuthEvent,
  type AuthOptions,
  encryptToken,
  getUser,
  type Jwk,
  JWETokenVerifier,
  KeyError,
  type RsaPublicJwk,
  withAuth,
} from 'mcp-auth-middleware';
import { countRsa, hold, rsa } from './support/rsa.js';
import { keyPair, needs, outcome, root, run, type Scope, serve, until } from './support/support.js';

const NOW = 1_800_000_000;
const folder = mkdtempSync(join(tmpdir(), 'keyfile-'));
after(() => rmSync(folder, { recursive: true, force: true }));
let files = 0;
const newPath = (): string => join(folder, `${(files += 1)}.json`);

const [a, b, c, d, e] = await Promise.all(
  ['a', 'b', 'c', 'd', 'e'].map(async (name) => ({ ...(await keyPair(name)).privateJwk, iat: undefined })),
);
if (!a || !b || !c || !d || !e) throw new Error('five keys are made above');
const publicOf = ({ kty, n, e: exponent, kid, alg }: typeof a): RsaPublicJwk => ({ kty, n, e: exponent, kid, alg });
const mint = (key: typeof a, claims: object = {}): Promise<string> =>
  encryptToken({ sub: 'alice', iat: NOW, exp: NOW + 1_000_000, ...claims }, publicOf(key));
/** As producers make them that know nothing of key ids. */
const withoutKid = async (key: typeof a): Promise<string> =>
  new CompactEncrypt(Buffer.from('{"sub":"alice"}'))
    .setProtectedHeader({ alg: 'RSA-OAEP-256', enc: 'A256GCM' })
    .encrypt(await importJWK({ ...publicOf(key) }));

/** A JWK Set as text, all of the same length, so that no test depends on a change of size. */
const setOf = (...keys: object[]): string => JSON.stringify({ keys }).padEnd(20_000);

function write(content: string | Uint8Array, mode = 0o600): string {
  const path = newPath();
  writeFileSync(path, content, { mode });
  chmodSync(path, mode);
  return path;
}

// ## At start

/** Consistent in all its members, but p is no prime, so that it does not decrypt what it encrypts. */
function compositeKey(): Jwk {
  const exponent = 65537n;
  const inverse = (value: bigint, modulus: bigint): bigint => {
    let [r0, r1, t0, t1] = [modulus, value % modulus, 0n, 1n];
    while (r1 !== 0n) [r0, r1, t0, t1] = [r1, r0 % r1, t1, t0 - (r0 / r1) * t1];
    return r0 === 1n ? ((t0 % modulus) + modulus) % modulus : 0n;
  };
  for (;;) {
    const p = generatePrimeSync(512, { bigint: true }) * generatePrimeSync(512, { bigint: true });
    const q = generatePrimeSync(1025, { bigint: true });
    const gcd = (x: bigint, y: bigint): bigint => (y === 0n ? x : gcd(y, x % y));
    const lambda = ((p - 1n) * (q - 1n)) / gcd(p - 1n, q - 1n);
    const private_ = inverse(exponent, lambda);
    if (private_ === 0n || private_ >= p * q || (private_ * exponent) % (p - 1n) !== 1n) continue;
    const encode = (value: bigint): string => {
      const hex = value.toString(16);
      return Buffer.from(hex.padStart(hex.length + (hex.length % 2), '0'), 'hex').toString('base64url');
    };
    const members = {
      n: p * q,
      e: exponent,
      d: private_,
      p,
      q,
      dp: private_ % (p - 1n),
      dq: private_ % (q - 1n),
      qi: inverse(q, p),
    };
    if (members.n.toString(2).length < 2048 || members.qi === 0n) continue;
    return {
      kty: 'RSA',
      kid: 'composite',
      alg: 'RSA-OAEP-256',
      use: 'enc',
      ...Object.fromEntries(Object.entries(members).map(([name, value]) => [name, encode(value)])),
    };
  }
}

const composite = compositeKey();
const weak = generateKeyPairSync('rsa', { modulusLength: 1024 }).privateKey.export({ format: 'jwk' });
const elliptic = generateKeyPairSync('ec', { namedCurve: 'P-256' }).privateKey.export({ format: 'jwk' });
const bad: [what: string, content: string | Uint8Array, code: KeyError['code']][] = [
  ['that is empty', '', 'malformed'],
  ['that is no JSON', 'keys: []', 'malformed'],
  ['of which half is there', setOf(a).trimEnd().slice(0, 900), 'malformed'],
  ['with an array', JSON.stringify([a]), 'malformed'],
  ['with null', 'null', 'malformed'],
  ['with a byte order mark', `\ufeff${setOf(a)}`, 'malformed'],
  [
    'that is not UTF-8',
    Buffer.concat([Buffer.from('{"keys":[],"'), Buffer.from([0xff]), Buffer.from('":1}')]),
    'malformed',
  ],
  ['in UTF-16', Buffer.from(setOf(a), 'utf16le'), 'malformed'],
  ['without keys', '{"keys":[]}', 'malformed'],
  ['with keys that are no array', '{"keys":{}}', 'malformed'],
  ['with a key that is no object', '{"keys":["key"]}', 'malformed'],
  ['with a kid that is a number', setOf({ ...a, kid: 1 }), 'malformed'],
  ['with two keys of one kid', setOf(a, { ...b, kid: a.kid }), 'malformed'],
  ['with the same key twice', setOf(a, a), 'malformed'],
  ['with padded base64url', setOf({ ...a, d: `${a.d}==` }), 'malformed'],
  ['with a time that is text', setOf({ ...a, exp: '2030-01-01' }), 'malformed'],
  ['with a public key', setOf(publicOf(a)), 'public_only'],
  ['with a private and a public key', setOf(a, publicOf(b)), 'public_only'],
  ['with a key of 1024 bits', setOf(weak), 'weak'],
  ['with another exponent', setOf({ ...a, e: 'Aw' }), 'weak'],
  ["with another key's d", setOf({ ...a, d: b.d }), 'inconsistent'],
  ["with another key's primes", setOf({ ...a, p: b.p, q: b.q, dp: b.dp, dq: b.dq, qi: b.qi }), 'inconsistent'],
  ['with swapped primes', setOf({ ...a, p: a.q, q: a.p }), 'inconsistent'],
  ['with a "prime" that is none', setOf(composite), 'inconsistent'],
  ['without CRT members', setOf({ kty: a.kty, n: a.n, e: a.e, d: a.d }), 'malformed'],
  ['with an EC key', setOf(elliptic), 'unsupported'],
  ['with a signing key', setOf({ ...a, use: 'sig' }), 'unsupported'],
  ['with operations that are not ours', setOf({ ...a, key_ops: ['sign'] }), 'unsupported'],
  ['with another alg', setOf({ ...a, alg: 'RSA1_5' }), 'unsupported'],
  ['with three primes', setOf({ ...a, oth: [] }), 'unsupported'],
  ['with five keys', setOf(a, b, c, d, e), 'too_many'],
  ['whose keys have expired', setOf({ ...a, exp: NOW }, { ...b, exp: NOW - 1 }), 'expired'],
  ['of more than 1 MiB', setOf(a).padEnd(1_048_577), 'unreadable'],
];
const good: [what: string, content: string, keys: number][] = [
  ['with one key', setOf(a), 1],
  ['that is one JWK', JSON.stringify(a), 1],
  ['with members and operations of others', setOf({ ...a, key_ops: ['sign', 'unwrapKey'], x5t: 'x' }), 1],
  ['with four keys and an expired one', setOf(a, b, c, d, { ...e, exp: NOW }), 4],
  ['of 1 MiB', setOf(a).padEnd(1_048_576), 1],
  ['without kid, alg and use', setOf({ ...a, kid: undefined, alg: undefined, use: undefined }), 1],
];
const secrets = [a, b].flatMap((key) => [key.d, key.p, key.q, key.dp, key.dq, key.qi]);
const start = (keyFile: string): JWETokenVerifier => new JWETokenVerifier({ keyFile, now: () => NOW });

/** The KeyError that keeps a server from starting, after it was seen to name the file and no secret. */
function refusal(path: string): KeyError {
  try {
    start(path);
  } catch (error) {
    assert.ok(error instanceof KeyError, String(error));
    assert.ok(error.message.startsWith(path), error.message);
    assert.match(error.message, /[;:,] .*\w/);
    for (const secret of secrets) assert.ok(!error.message.includes(secret.slice(0, 20)));
    assert.equal(error.cause, undefined);
    return error;
  }
  return assert.fail('it started');
}

for (const [what, content, code] of bad) {
  test(`does not start with a key file ${what}`, () => assert.equal(refusal(write(content)).code, code));
}

for (const [what, content, keys] of good) {
  test(`starts with a key file ${what}`, async () => {
    const verifier = start(write(content));
    assert.equal(verifier.getJwks().keys.length, 1);
    const outcomes = await Promise.all(
      [a, b, c, d, e].map(async (key) => outcome(verifier.authenticate(await mint(key)))),
    );
    assert.deepEqual(
      outcomes,
      [0, 1, 2, 3, 4].map((i) => (i < keys ? 'accepted' : 'unknown_key')),
    );
  });
}

test('does not start without a key file, and says how to get one', () => {
  const error = refusal(newPath());
  assert.equal(error.code, 'missing');
  assert.match(error.message, /mcp-auth-middleware generate/);
  assert.equal(refusal(join(write(setOf(a)), 'below-a-file')).code, 'missing');
});

test('does not start with a directory or a device', () => {
  const path = newPath();
  mkdirSync(path);
  assert.equal(refusal(path).code, 'unreadable');
  assert.equal(refusal('/dev/zero').code, 'unreadable');
});

test('does not hang at a FIFO', needs('mkfifo'), async () => {
  const path = newPath();
  assert.equal((await run('mkfifo', [path])).code, 0);
  assert.equal(refusal(path).code, 'unreadable');
});

test(
  'does not start with a key file it may not read',
  { skip: process.geteuid === undefined && 'needs user ids' },
  () => {
    const path = write(setOf(a), 0o000);
    const user = process.geteuid?.();
    if (user === 0) process.seteuid?.(65_534); // whom the mode does not stop, if anybody
    try {
      const error = refusal(path);
      assert.equal(error.code, 'unreadable');
      assert.match(error.message, /EACCES/);
    } finally {
      if (user === 0) process.seteuid?.(0);
    }
  },
);

test('does not start without a key at all, and names the environment variable', () => {
  const { MCP_KEY_FILE_PATH: set } = process.env;
  delete process.env['MCP_KEY_FILE_PATH'];
  try {
    assert.throws(
      () => new JWETokenVerifier(),
      (error) => error instanceof KeyError && error.code === 'missing' && error.message.includes('MCP_KEY_FILE_PATH'),
    );
    process.env['MCP_KEY_FILE_PATH'] = write(setOf(a));
    assert.equal(new JWETokenVerifier().getJwks().keys[0]?.kid, a.kid);
  } finally {
    delete process.env['MCP_KEY_FILE_PATH'];
    if (set !== undefined) process.env['MCP_KEY_FILE_PATH'] = set;
  }
});

/** What a new process warns of at start. */
async function warnings(content: string, mode: number): Promise<string> {
  const library = pathToFileURL(join(root, 'dist/mcp-auth.js')).href;
  const program = `import { JWETokenVerifier } from ${JSON.stringify(library)};
    for (const _ of [1, 2]) new JWETokenVerifier();`;
  const { code, stderr } = await run(process.execPath, ['--input-type=module', '-e', program], {
    env: { MCP_KEY_FILE_PATH: write(content, mode) },
  });
  assert.equal(code, 0, stderr);
  return stderr;
}

for (const [mode, warns] of [
  [0o600, false],
  [0o400, false],
  [0o440, false],
  [0o640, false],
  [0o644, true],
  [0o604, true],
] as const) {
  test(
    `${warns ? 'warns once of' : 'says nothing of'} a key file with mode ${mode.toString(8)}`,
    { skip: process.platform === 'win32' && 'no modes' },
    async () => {
      assert.equal((await warnings(setOf(a), mode)).split('[MCP_AUTH_KEY_FILE_MODE]').length, warns ? 2 : 1);
    },
  );
}

test('warns once of a key without alg, with how to mark it', async () => {
  const text = await warnings(setOf({ ...a, alg: undefined }), 0o600);
  assert.equal(text.split('[MCP_AUTH_KEY_ALG]').length, 2);
  assert.match(text, /"alg": "RSA-OAEP"/);
  assert.doesNotMatch(await warnings(setOf(a), 0o600), /MCP_AUTH_KEY_ALG/);
});

// ## While it runs

/** A server with a clock of its own. */
async function follow(scope: Scope, keyFile: string, options: AuthOptions = {}) {
  const clock = { now: NOW };
  const events: AuthEvent[] = [];
  const handler = withAuth(
    (_req, res) => {
      res.end(getUser().sub);
    },
    {
      keyFile,
      now: () => clock.now,
      onEvent: (event) => {
        if (event.type.startsWith('keys.')) events.push(event);
      },
      ...options,
    },
  );
  const { url } = await serve(scope, handler);
  const ask = async (token: string): Promise<number> =>
    (await fetch(url, { headers: { authorization: `Bearer ${token}` } })).status;
  const published = async (): Promise<string> =>
    Object(await (await fetch(`${url}/.well-known/jwks.json`)).json())
      .keys.map((key: Jwk) => key.kid)
      .join();
  assert.deepEqual(events.splice(0), [{ type: 'keys.loaded', keyId: await published() }]);
  return { clock, events, ask, published, url };
}

/** The ways in which files are changed in the world, each from one content to the next. */
const changes: Record<string, (path: string, content: string) => void> = {
  'written anew in place': (path, content) => writeFileSync(path, content),
  'written in place with its old size and times': (path, content) => {
    const { atime, mtime } = statSync(path);
    writeFileSync(path, content);
    utimesSync(path, atime, mtime);
  },
  'replaced by rename': (path, content) => {
    writeFileSync(`${path}.new`, content, { mode: 0o600 });
    renameSync(`${path}.new`, path);
  },
  'replaced by rename with its old size and times': (path, content) => {
    const { atime, mtime } = statSync(path);
    writeFileSync(`${path}.new`, content, { mode: 0o600 });
    utimesSync(`${path}.new`, atime, mtime);
    renameSync(`${path}.new`, path);
  },
  'deleted and made anew': (path, content) => {
    rmSync(path);
    writeFileSync(path, content, { mode: 0o600 });
  },
  // kubelet: the key is a link into ..data, which is a link to a folder named after a time; that link alone is swapped.
  'swapped by kubelet': (path, content) => {
    const mount = dirname(path);
    const version = mkdtempSync(join(mount, '..2030_'));
    writeFileSync(join(version, 'mcp_jwks'), content, { mode: 0o440 });
    symlinkSync(version, join(mount, '..data_tmp'));
    renameSync(join(mount, '..data_tmp'), join(mount, '..data'));
  },
};

/** A key file as the change will find it. */
function place(how: string, content: string): string {
  if (how !== 'swapped by kubelet') return write(content);
  const mount = mkdtempSync(join(folder, 'mount-'));
  const path = join(mount, 'mcp_jwks');
  changes[how]?.(path, content);
  symlinkSync('..data/mcp_jwks', path);
  return path;
}

for (const [how, change] of Object.entries(changes)) {
  test(`follows a key file that is ${how}`, async (t) => {
    const path = place(how, setOf(a));
    const { clock, events, ask, published } = await follow(t, path);
    const [old, fresh] = [await mint(a), await mint(b)];
    assert.equal(await ask(old), 200);
    change(path, setOf(a, { ...b, iat: NOW }));
    clock.now += 4.9;
    assert.equal(await published(), a.kid);
    clock.now += 0.1;
    assert.equal(await published(), b.kid);
    assert.deepEqual(events, [{ type: 'keys.loaded', keyId: b.kid }]);
    assert.deepEqual([await ask(old), await ask(fresh)], [200, 200]);
    change(path, setOf(b));
    clock.now += 5;
    assert.deepEqual([await ask(old), await ask(fresh)], [401, 200]);
    clock.now += 50;
    assert.equal(await ask(fresh), 200);
    assert.equal(events.length, 2); // what has not changed is not read again
  });
}

test('a token with an unknown kid finds the key that was added a moment ago', async (t) => {
  const path = write(setOf(a));
  const { events, ask } = await follow(t, path);
  writeFileSync(path, setOf(a, b));
  assert.equal(await ask(await mint(b)), 200);
  assert.equal(events.length, 1);
});

test('a token without kid finds the key that was added a moment ago', async (t) => {
  const path = write(setOf(a));
  const { events, ask } = await follow(t, path);
  writeFileSync(path, setOf(a, b));
  assert.equal(await ask(await withoutKid(b)), 200);
  assert.equal(events.length, 1);
});

test('a token with the kid of a known key, whose tag fails, forces no look', async (t) => {
  const path = write(setOf(a));
  const { events, ask } = await follow(t, path);
  writeFileSync(path, 'bad');
  const token = await mint(a);
  assert.equal(await ask(`${token.slice(0, -22)}${'A'.repeat(22)}`), 401);
  assert.deepEqual(events, []);
  assert.equal(await ask(await mint(b)), 401);
  assert.deepEqual(
    events.map(({ type }) => type),
    ['keys.failed'],
  ); // the second forced one
});

test('many tokens with unknown kids force one look, and no more before its time', async (t) => {
  const path = write(setOf(a));
  const { clock, events, ask } = await follow(t, path, { maxPending: 1000 });
  writeFileSync(path, 'bad'); // every look at it is an event
  const flood = async (): Promise<void> => {
    const tokens = await Promise.all(Array.from({ length: 50 }, (_, i) => mint(b, { i })));
    assert.deepEqual(new Set(await Promise.all(tokens.map(ask))), new Set([401]));
  };
  await flood();
  assert.equal(events.length, 1);
  await flood();
  assert.equal(events.length, 1);
  clock.now += 4.9;
  await flood();
  assert.equal(events.length, 2);
});

test('requests that come at once when a look is due share it', async (t) => {
  const path = write(setOf(a));
  const { clock, events, ask } = await follow(t, path);
  const token = await mint(a);
  writeFileSync(path, 'bad');
  clock.now += 5;
  assert.deepEqual(new Set(await Promise.all(Array.from({ length: 50 }, () => ask(token)))), new Set([200]));
  assert.equal(events.length, 1);
});

test('looks again when the clock was set back', async (t) => {
  const path = write(setOf(a));
  const { clock, published } = await follow(t, path);
  writeFileSync(path, setOf(b));
  clock.now -= 3600;
  assert.equal(await published(), b.kid);
});

const failures: [what: string, spoil: (path: string) => unknown, reason: KeyError['code']][] = [
  ['is gone', (path) => rmSync(path), 'missing'],
  [
    'is a directory now',
    (path) => {
      rmSync(path);
      mkdirSync(path);
    },
    'unreadable',
  ],
  [
    'is half written',
    (path) => {
      writeFileSync(path, setOf(b));
      truncateSync(path, 900);
    },
    'malformed',
  ],
  ['is empty', (path) => truncateSync(path), 'malformed'],
  ['has public keys only', (path) => writeFileSync(path, setOf(publicOf(b))), 'public_only'],
  ['has a good and a bad key', (path) => writeFileSync(path, setOf(b, { ...c, d: a.d })), 'inconsistent'],
  ['has a key that does not decrypt', (path) => writeFileSync(path, setOf(b, composite)), 'inconsistent'],
  ['is larger than 1 MiB', (path) => truncateSync(path, 1_048_577), 'unreadable'],
];
for (const [what, spoil, reason] of failures) {
  test(`keeps the last good keys, says so at each look, and recovers, when the file ${what}`, async (t) => {
    const path = write(setOf(a));
    const { clock, events, ask, published } = await follow(t, path);
    const [old, fresh] = [await mint(a), await mint(b)];
    assert.equal(await ask(old), 200);
    spoil(path);
    for (const looks of [1, 2]) {
      clock.now += 5;
      assert.equal(
        await countRsa(async () => assert.equal(await ask(old), 200)),
        reason === 'inconsistent' && what.includes('decrypt') ? 2 : 0,
      );
      assert.equal(await published(), a.kid);
      assert.deepEqual(
        events,
        Array.from({ length: looks }, () => ({ type: 'keys.failed', reason })),
      );
    }
    assert.equal(await ask(fresh), 401);
    rmSync(path, { recursive: true, force: true });
    writeFileSync(path, setOf(b));
    clock.now += 5;
    assert.deepEqual([await ask(old), await ask(fresh)], [401, 200]);
    assert.equal(await published(), b.kid);
  });
}

test('a file whose keys have all expired is valid: 503 and an empty set, until there are others', async (t) => {
  const path = write(setOf(a));
  const { clock, events, ask, published, url } = await follow(t, path);
  const [known, fresh] = [await mint(a), await mint(b)];
  assert.equal(await ask(known), 200);
  writeFileSync(path, setOf({ ...a, exp: NOW + 1 }));
  clock.now += 5;
  const answer = await fetch(url, { headers: { authorization: `Bearer ${known}` } });
  assert.equal(answer.status, 503);
  assert.match(String(answer.headers.get('retry-after')), /^[1-9]/);
  assert.equal(Object(await answer.json()).error, 'temporarily_unavailable');
  assert.equal(await published(), '');
  assert.deepEqual(events, [{ type: 'keys.loaded' }]);
  writeFileSync(path, setOf(b));
  clock.now += 5;
  assert.deepEqual([await ask(fresh), await ask(known)], [200, 401]);
});

test('publishes the newest key whose time has come, and decrypts with each until it expires', async (t) => {
  const path = write(
    setOf(
      { ...a, iat: NOW - 1000, exp: NOW + 700 },
      { ...b, iat: NOW, nbf: NOW + 600 },
      { ...c, iat: NOW - 2000, exp: NOW + 100 },
    ),
  );
  const { clock, ask, published } = await follow(t, path);
  const tokens = [await mint(a), await mint(b), await mint(c)];
  const at = async (seconds: number): Promise<[string, ...number[]]> => {
    clock.now = NOW + seconds;
    return [await published(), await ask(tokens[0] ?? ''), await ask(tokens[1] ?? ''), await ask(tokens[2] ?? '')];
  };
  assert.deepEqual(await at(0), [a.kid, 200, 200, 200]);
  assert.deepEqual(await at(99.9), [a.kid, 200, 200, 200]);
  assert.deepEqual(await at(100), [a.kid, 200, 200, 401]);
  assert.deepEqual(await at(599), [a.kid, 200, 200, 401]);
  assert.deepEqual(await at(600), [b.kid, 200, 200, 401]);
  assert.deepEqual(await at(699), [b.kid, 200, 200, 401]);
  assert.deepEqual(await at(700), [b.kid, 401, 200, 401]);
});

const order: [what: string, keys: object[], published: string | undefined][] = [
  [
    'nbf before iat',
    [
      { ...a, iat: NOW, nbf: NOW - 100 },
      { ...b, iat: NOW - 50 },
    ],
    b.kid,
  ],
  ['the first of those without times', [a, b], a.kid],
  ['one with a time before one without', [a, { ...b, iat: NOW - 100 }], b.kid],
  [
    'none whose time has not come',
    [
      { ...a, nbf: NOW + 1 },
      { ...b, nbf: NOW - 1 },
    ],
    b.kid,
  ],
  [
    'none that has expired',
    [
      { ...a, iat: NOW - 5, exp: NOW },
      { ...b, iat: NOW - 100 },
    ],
    b.kid,
  ],
  [
    'the one whose time comes first, when none has come',
    [
      { ...a, nbf: NOW + 20 },
      { ...b, nbf: NOW + 10 },
    ],
    b.kid,
  ],
];
for (const [what, keys, kid] of order) {
  test(`publishes ${what}`, () => assert.equal(start(write(setOf(...keys))).getJwks().keys[0]?.kid, kid));
}

test('1,000 returning users draw no 503 and no decryption when the keys rotate', async (t) => {
  const path = write(setOf(a));
  const { clock, ask, published } = await follow(t, path);
  const tokens = await Promise.all(Array.from({ length: 1000 }, (_, i) => mint(a, { i })));
  const all = async (): Promise<number[]> => {
    const statuses: number[] = [];
    for (let i = 0; i < tokens.length; i += 100)
      statuses.push(...(await Promise.all(tokens.slice(i, i + 100).map(ask))));
    return [...new Set(statuses)];
  };
  assert.equal(await countRsa(async () => assert.deepEqual(await all(), [200])), 1000);
  writeFileSync(path, setOf({ ...a, exp: NOW + 1000 }, { ...b, iat: NOW }));
  clock.now += 5;
  assert.equal(await countRsa(async () => assert.deepEqual(await all(), [200])), 1); // the new key's self-test
  assert.equal(await published(), b.kid);
  clock.now = NOW + 999;
  assert.equal(await countRsa(async () => assert.deepEqual(await all(), [200])), 0);
  clock.now = NOW + 1000; // the old key expires, and with it what it decrypted
  assert.equal(await countRsa(async () => assert.deepEqual(await all(), [401])), 0);
});

test('a key that is taken out of the file takes its known tokens with it at once, and only those', async (t) => {
  const path = write(setOf(a, b));
  const { clock, ask } = await follow(t, path);
  const tokens = [await mint(a), await mint(b)];
  for (const token of tokens) assert.equal(await ask(token), 200);
  writeFileSync(path, setOf(b));
  clock.now += 5;
  assert.equal(
    await countRsa(async () => assert.deepEqual([await ask(tokens[0] ?? ''), await ask(tokens[1] ?? '')], [401, 200])),
    0,
  );
  writeFileSync(path, setOf(a, b));
  clock.now += 5;
  const selfTestAndDecryption = 2;
  assert.equal(await countRsa(async () => assert.equal(await ask(tokens[0] ?? ''), 200)), selfTestAndDecryption);
});

test('another key under the same kid takes the known tokens of the first with it', async (t) => {
  const path = write(setOf({ ...a, kid: 'key' }));
  const { clock, ask } = await follow(t, path);
  const tokens = [await mint({ ...a, kid: 'key' }), await mint({ ...b, kid: 'key' })];
  assert.deepEqual([await ask(tokens[0] ?? ''), await ask(tokens[1] ?? '')], [200, 401]);
  writeFileSync(path, setOf({ ...b, kid: 'key' }));
  clock.now += 5;
  assert.deepEqual([await ask(tokens[0] ?? ''), await ask(tokens[1] ?? '')], [401, 200]);
});

test('a decryption under way when its key is taken out neither answers nor fills the cache', async (t) => {
  const path = write(setOf(a, b));
  const { clock, ask, published } = await follow(t, path);
  const token = await mint(a);
  const release = hold(t);
  const answer = ask(token);
  await until(() => rsa.running === 1);
  writeFileSync(path, setOf(b));
  clock.now += 5;
  assert.equal(await published(), b.kid);
  release();
  assert.equal(await answer, 401);
  writeFileSync(path, setOf(a, b));
  clock.now += 5;
  assert.equal(await countRsa(async () => assert.equal(await ask(token), 200)), 2); // self-test and decryption
});

test('known tokens are served while a new key is being tested', async (t) => {
  const path = write(setOf(a));
  const { clock, ask, published } = await follow(t, path);
  const token = await mint(a);
  assert.equal(await ask(token), 200);
  writeFileSync(path, setOf(a, { ...b, iat: NOW }));
  clock.now += 5;
  const release = hold(t);
  const looking = published();
  await until(() => rsa.running === 1);
  assert.equal(await ask(token), 200);
  release();
  assert.equal(await looking, b.kid);
});

test('a private set given in place is read once and never looks at a file', async () => {
  let now = NOW;
  const keys = { keys: [{ ...a, exp: NOW + 100 }, b] };
  const verifier = new JWETokenVerifier({ keys, now: () => now });
  keys.keys.pop();
  now += 100;
  assert.deepEqual(await Promise.all([a, b].map(async (key) => outcome(verifier.authenticate(await mint(key))))), [
    'unknown_key',
    'accepted',
  ]);
});
