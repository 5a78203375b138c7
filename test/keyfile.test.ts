// The key file: what a server refuses to start with, and how it follows the file while it runs.
import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { generatePrimeSync } from 'node:crypto';
import { once } from 'node:events';
import {
  chmodSync,
  linkSync,
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
import { basename, dirname, join } from 'node:path';
import { after, describe, test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { pathToFileURL } from 'node:url';
import { isDeepStrictEqual } from 'node:util';
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
import { hangOpen, looks, opensOf } from './support/looks.js';
import { collect, isCollected } from './support/memory.js';
import { countRsa, hold, rsa } from './support/rsa.js';
import { keyPair, needs, outcome, root, run, type Scope, serve, until } from './support/support.js';
import { newPair } from './support/tokens.js';

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

/**
 * A `test` for those that wait for seconds, each over a file of its own and without a count of what the process does.
 * Runners other than Node's run one test after another, whatever its `concurrency` says: here the first test begins all
 * of them, so that they wait side by side everywhere, and each tells how its own one ended.
 */
function sideBySide(): (name: string, body: (t: Scope) => Promise<void>, options?: { skip: string | false }) => void {
  const waiting: (() => void)[] = [];
  return (name, body, { skip } = { skip: false }) => {
    let running: Promise<void> | undefined;
    const begin = async (): Promise<void> => {
      const cleanups: (() => unknown)[] = [];
      try {
        await body({ after: (cleanup) => cleanups.push(cleanup) });
      } finally {
        for (const cleanup of cleanups) await cleanup();
      }
    };
    if (!skip)
      waiting.push(() => {
        running = begin();
        running.catch(() => {}); // it is the test of this name that fails, when its turn comes
      });
    test(name, { skip }, async () => {
      for (const start of waiting.splice(0)) start();
      await running;
    });
  };
}

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
const weak = newPair('rsa', { modulusLength: 1024 }).privateKey.export({ format: 'jwk' });
const elliptic = newPair('ec').privateKey.export({ format: 'jwk' });
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

/** The path of a program that imports the library. A file, for Deno takes the source after Node's -e for a script. */
function writeProgram(source: string): string {
  const path = join(folder, `${(files += 1)}.mjs`);
  const library = pathToFileURL(join(root, 'dist/mcp-auth.js')).href;
  writeFileSync(path, `import { JWETokenVerifier, withAuth } from ${JSON.stringify(library)};\n${source}`);
  return path;
}

/** What a new process warns of at start. */
async function warningsOf(keyFile: string): Promise<string> {
  const program = writeProgram('for (const _ of [1, 2]) new JWETokenVerifier();');
  const { code, stderr } = await run(process.execPath, [program], { env: { MCP_KEY_FILE_PATH: keyFile } });
  assert.equal(code, 0, stderr);
  return stderr;
}

test('says nothing of the mode of a file that everybody may read where there is no private key in it', async () => {
  for (const [content, code] of [
    [setOf(publicOf(a)), 'public_only'],
    ['export const listening = true;', 'malformed'],
  ] as const) {
    const path = write(content, 0o644);
    assert.throws(() => start(path), { code });
    await sleep(20);
    assert.deepEqual(
      warned.filter(({ message }) => message.includes(path)),
      [],
    );
  }
});

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
      assert.equal((await warningsOf(write(setOf(a), mode))).split('[MCP_AUTH_KEY_FILE_MODE]').length, warns ? 2 : 1);
    },
  );
}

test('warns once of a key without alg, with how to mark it', async () => {
  const text = await warningsOf(write(setOf({ ...a, alg: undefined })));
  assert.equal(text.split('[MCP_AUTH_KEY_ALG]').length, 2);
  assert.match(text, /"alg": "RSA-OAEP"/);
  assert.doesNotMatch(await warningsOf(write(setOf(a))), /MCP_AUTH_KEY_ALG/);
});

// ## While it runs: the timer looks once a second

interface Warning {
  code?: string;
  message: string;
}
const warned: Warning[] = [];
process.on('warning', (warning) => warned.push(warning));

const loaded = (keyId: string | undefined, ...kids: (string | undefined)[]): object => ({
  type: 'keys.loaded',
  kids,
  ...(keyId !== undefined && { keyId }),
});

/** A server with a clock of its own, which stands still: nothing but the timer makes it look at its file. */
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
  const get = (token: string): Promise<Response> => fetch(url, { headers: { authorization: `Bearer ${token}` } });
  const ask = async (token: string): Promise<number> => (await get(token)).status;
  const jwks = (): Promise<Response> => fetch(`${url}/.well-known/jwks.json`);
  const published = async (): Promise<string> =>
    Object(await (await jwks()).json())
      .keys.map((key: Jwk) => key.kid)
      .join();
  const [first, ...others] = events.splice(0);
  assert.deepEqual([first?.type, first?.keyId, others], ['keys.loaded', await published(), []]);
  return { clock, events, get, ask, jwks, published };
}

/** The timer has looked once more since: an event, should there be one, was told. */
async function look(path: string): Promise<void> {
  const since = looks.opened.length;
  await until(() => opensOf(path, since) === 2); // the first may have begun before
}

/**
 * The next event that is not the one before. A look that had opened the file when its name was taken away sees another
 * ctime, and says the old keys again.
 */
async function nextChange(events: AuthEvent[], before: object): Promise<AuthEvent | undefined> {
  await until(() => events.some((event) => !isDeepStrictEqual(event, before)));
  const index = events.findIndex((event) => !isDeepStrictEqual(event, before));
  assert.ok(index <= 1, 'only the look under way says them again');
  return events.splice(0, index + 1)[index];
}

const OLD_TIMES = 'written in place with its old size and times';

/** The ways in which files are changed in the world, each from one content to the next. */
const changes: Record<string, (path: string, content: string) => void> = {
  'written anew in place': (path, content) => writeFileSync(path, content),
  [OLD_TIMES]: (path, content) => {
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

/** Only its ctime shows such a change, of which Deno gives whole seconds: waits there until the next one. */
async function untilChangeShows(path: string): Promise<void> {
  const { ctimeNs } = statSync(path, { bigint: true });
  if (ctimeNs % 1_000_000_000n !== 0n) return;
  const next = Number(ctimeNs / 1_000_000n) + 1000;
  await sleep(Math.max(0, next - Date.now()) + 20); // the clock of the file system is some milliseconds behind
}

/** A key file as the change will find it. */
function place(how: string, content: string): string {
  if (how !== 'swapped by kubelet') return write(content);
  const mount = mkdtempSync(join(folder, 'mount-'));
  const path = join(mount, 'mcp_jwks');
  changes[how]?.(path, content);
  symlinkSync('..data/mcp_jwks', path);
  return path;
}

describe('the file as it changes', () => {
  const together = sideBySide();
  for (const [how, change] of Object.entries({
    ...changes,
    'replaced by a link to another file': (path: string, content: string) => {
      const other = write(content);
      symlinkSync(other, `${path}.new`);
      renameSync(`${path}.new`, path);
    },
    'replaced by a second name of another file': (path: string, content: string) => {
      const other = write(content);
      linkSync(other, `${path}.new`);
      renameSync(`${path}.new`, path);
    },
  })) {
    together(`follows a key file that is ${how}, within seconds and without a request`, async (t) => {
      const path = place(how, setOf(a));
      const { events, ask, published } = await follow(t, path);
      const [old, fresh] = [await mint(a), await mint(b)];
      assert.equal(await ask(old), 200);
      if (how === OLD_TIMES) await untilChangeShows(path);
      const began = performance.now();
      change(path, setOf(a, { ...b, iat: NOW }));
      assert.deepEqual(await nextChange(events, loaded(a.kid, a.kid)), loaded(b.kid, a.kid, b.kid));
      assert.ok(performance.now() - began < 3000, 'the timer looks once a second');
      assert.deepEqual(events, []);
      assert.equal(await published(), b.kid);
      assert.deepEqual([await ask(old), await ask(fresh)], [200, 200]);
      if (how === OLD_TIMES) await untilChangeShows(path);
      change(path, setOf(b));
      assert.deepEqual(await nextChange(events, loaded(b.kid, a.kid, b.kid)), loaded(b.kid, b.kid));
      assert.deepEqual([await ask(old), await ask(fresh)], [401, 200]);
      await look(path);
      assert.deepEqual(events, [], 'what has not changed is not read again');
    });
  }

  for (const [what, tokenOf] of [
    ['with the kid of a key', mint],
    ['without kid for a key', withoutKid],
  ] as const) {
    together(`a token ${what} that is new to the file is accepted once the timer has looked`, async (t) => {
      const path = write(setOf(a));
      const { events, ask } = await follow(t, path);
      const token = await tokenOf(b);
      assert.equal(await ask(token), 401);
      writeFileSync(path, setOf(a, b));
      await until(() => events.length === 1);
      assert.equal(await ask(token), 200);
    });
  }

  together('a file that everybody may read is warned of when it becomes one, and goes on', async (t) => {
    const path = write(setOf(a));
    const { events, ask } = await follow(t, path);
    const warnings = (): Warning[] =>
      warned.filter(({ code, message }) => message.includes(path) && code !== undefined);
    await look(path);
    assert.deepEqual(warnings(), []);
    chmodSync(path, 0o604);
    await until(() => warnings().length > 0);
    await look(path);
    assert.deepEqual(
      warnings().map(({ code }) => code),
      ['MCP_AUTH_KEY_FILE_MODE'],
    );
    assert.ok(events.every(({ type }) => type === 'keys.loaded'));
    assert.equal(await ask(await mint(a)), 200);
  });
});

test('no request looks at the file, whatever token it brings', async (t) => {
  const path = write(setOf(a));
  const { ask } = await follow(t, path, { maxPending: 1000 });
  const good = await mint(a);
  const unknown = await Promise.all(Array.from({ length: 50 }, (_, i) => mint(b, { i })));
  const [since, began] = [looks.opened.length, performance.now()];
  const tokens = [...unknown, await withoutKid(b), `${good.slice(0, -22)}${'A'.repeat(22)}`, 'no.token'];
  for (let round = 0; round < 3; round += 1)
    assert.deepEqual(new Set(await Promise.all(tokens.map(ask))), new Set([401]));
  const seconds = (performance.now() - began) / 1000;
  assert.ok(opensOf(path, since) <= Math.ceil(seconds) + 1, `${opensOf(path, since)} looks in ${seconds} s`);
});

// ## While it runs: what is no key file

const BOM = '\ufeff';
type Spoil = (path: string) => unknown;
const put = (content: string | Uint8Array) => (path: string) => writeFileSync(path, content);
const failures: [what: string, spoil: Spoil, code: KeyError['code'], message: RegExp, program?: string][] = [
  ['is gone', (path) => rmSync(path), 'missing', /no such key file; .*mcp-auth-middleware generate/],
  [
    'is a link to nothing now',
    (path) => {
      rmSync(path);
      symlinkSync(`${path}.gone`, path);
    },
    'missing',
    /no such key file/,
  ],
  [
    'is a link to itself now',
    (path) => {
      rmSync(path);
      symlinkSync(path, path);
    },
    'unreadable',
    /cannot be read \(ELOOP\)/,
  ],
  [
    'is a directory now',
    (path) => {
      rmSync(path);
      mkdirSync(path);
    },
    'unreadable',
    /must be a regular file of at most 1 MiB/,
  ],
  [
    'is a FIFO now',
    async (path) => {
      rmSync(path);
      await run('mkfifo', [path]);
    },
    'unreadable',
    /must be a regular file/,
    'mkfifo',
  ],
  [
    'is a device now',
    (path) => {
      rmSync(path);
      symlinkSync('/dev/zero', path);
    },
    'unreadable',
    /must be a regular file/,
  ],
  ['is half written', put(setOf(b).trimEnd().slice(0, 900)), 'malformed', /is not a JSON object in UTF-8/],
  ['is empty', (path) => truncateSync(path), 'malformed', /is not a JSON object/],
  ['has a byte order mark', put(`${BOM}${setOf(b)}`), 'malformed', /byte order mark \(BOM\); save it as UTF-8 without/],
  ['is in UTF-16', put(Buffer.from(`${BOM}${setOf(b)}`, 'utf16le')), 'malformed', /is not a JSON object in UTF-8/],
  ['is all zeros, as a crash leaves it', put(Buffer.alloc(20_000)), 'malformed', /is not a JSON object/],
  ['has an array', put(JSON.stringify([b])), 'malformed', /is not a JSON object/],
  ['has no keys', put('{"keys":[]}'), 'malformed', /at least one key/],
  ['has public keys only', put(setOf(publicOf(b))), 'public_only', /is a public key/],
  ['has two keys of one kid', put(setOf(b, { ...c, kid: b.kid })), 'malformed', /two keys have the same "kid"/],
  ['has five keys', put(setOf(a, b, c, d, e)), 'too_many', /remove the oldest/],
  ['has a good and a bad key', put(setOf(b, { ...c, d: a.d })), 'inconsistent', /key 2/],
  ['has a key that does not decrypt', put(setOf(b, composite)), 'inconsistent', /key 2.*does not decrypt/],
  ['is larger than 1 MiB', (path) => truncateSync(path, 1_048_577), 'unreadable', /at most 1 MiB/],
];
describe('the file that is no key file', () => {
  const together = sideBySide();
  for (const [what, spoil, code, message, program] of failures) {
    together(
      `keeps the last good keys, says so once, and recovers, when the file ${what}`,
      async (t) => {
        const path = write(setOf(a));
        const { events, ask, jwks, published } = await follow(t, path);
        const [old, fresh] = [await mint(a), await mint(b)];
        assert.equal(await ask(old), 200);
        await spoil(path);
        await until(() => events.length > 0);
        await look(path);
        const [failed, ...others] = events.splice(0);
        assert.ok(failed?.message);
        assert.deepEqual([failed, others], [{ type: 'keys.failed', code, message: failed.message }, []]);
        assert.match(failed.message, message);
        assert.ok(failed.message.startsWith(path));
        for (const secret of secrets) assert.ok(!failed.message.includes(secret.slice(0, 20)));
        const said = warned.filter((warning) => warning.message === failed.message);
        assert.deepEqual(
          said.map((warning) => warning.code),
          ['MCP_AUTH_KEY_FILE'],
        );
        assert.deepEqual([await ask(old), await ask(await mint(a, { another: 1 })), await ask(fresh)], [200, 200, 401]);
        assert.deepEqual([(await jwks()).status, await published()], [200, a.kid]);
        rmSync(path, { recursive: true, force: true });
        writeFileSync(path, setOf(b), { mode: 0o600 });
        await until(() => events.some(({ type }) => type === 'keys.loaded'));
        assert.deepEqual(events.at(-1), loaded(b.kid, b.kid));
        assert.deepEqual([await ask(old), await ask(fresh), await published()], [401, 200, b.kid]);
      },
      { skip: program !== undefined && needs(program).skip },
    );
  }

  together('another cause is another event and another warning, the return of the first one an event', async (t) => {
    const path = write(setOf(a));
    const { events } = await follow(t, path);
    const causes: [Spoil, string][] = [
      [(file) => rmSync(file), 'missing'],
      [put('{"keys":'), 'malformed'],
      [put(setOf(publicOf(a))), 'public_only'],
    ];
    for (const [spoil, code] of causes) {
      spoil(path);
      await until(() => events.at(-1)?.code === code);
    }
    writeFileSync(path, setOf(a), { mode: 0o600 });
    await until(() => events.at(-1)?.type === 'keys.loaded');
    rmSync(path);
    await until(() => events.at(-1)?.type === 'keys.failed');
    assert.deepEqual(
      events.map(({ type, code }) => code ?? type),
      ['missing', 'malformed', 'public_only', 'keys.loaded', 'missing'],
    );
    const own = warned.filter(({ message }) => message.startsWith(path));
    assert.deepEqual(
      own.map(({ code }) => code),
      Array.from({ length: 3 }, () => 'MCP_AUTH_KEY_FILE'),
    );
  });
});

test(
  'permissions that are lost are a failure, and the same keys again cost no known token',
  { skip: process.geteuid === undefined && 'needs user ids' },
  async (t) => {
    chmodSync(folder, 0o755); // so that it is the file that cannot be read
    t.after(() => chmodSync(folder, 0o700));
    const path = write(setOf(a));
    const { events, ask } = await follow(t, path);
    const token = await mint(a);
    assert.equal(await ask(token), 200);
    const user = process.geteuid?.();
    chmodSync(path, 0o000);
    if (user === 0) process.seteuid?.(65_534); // whom the mode does not stop, if anybody
    try {
      await until(() => events.length === 1);
    } finally {
      if (user === 0) process.seteuid?.(0);
    }
    const message = `${path}: cannot be read (EACCES); the server's user needs read permission`;
    assert.deepEqual(events, [{ type: 'keys.failed', code: 'unreadable', message }]);
    const cost = await countRsa(async () => {
      assert.equal(await ask(token), 200);
      chmodSync(path, 0o400);
      await until(() => events.length === 2);
      assert.deepEqual(events[1], loaded(a.kid, a.kid));
      assert.equal(await ask(token), 200);
    });
    assert.equal(cost, 0);
  },
);

test('nothing is said of modes where the file system has none of its own', needs('bindfs'), async (t) => {
  const [source, mount] = ['source-', 'mount-'].map((name) => mkdtempSync(join(folder, name)));
  if (!source || !mount) throw new Error('two folders are made above');
  writeFileSync(join(source, 'keys.json'), setOf(a), { mode: 0o600 });
  // Every file has one mode there, which chmod does not change: what FAT, SMB and the shares of a desktop look like.
  const mounted = await run('bindfs', ['--perms=0644:a+X', '--chmod-ignore', source, mount]);
  assert.equal(mounted.code, 0, mounted.stderr);
  t.after(() => run('umount', [mount]));
  const path = join(mount, 'keys.json');
  assert.equal(statSync(path).mode & 0o777, 0o644);
  assert.doesNotMatch(await warningsOf(path), /MCP_AUTH_KEY_FILE_MODE/);
  assert.match(await warningsOf(write(setOf(a), 0o644)), /MCP_AUTH_KEY_FILE_MODE/);
});

describe('a path with control characters', () => {
  const together = sideBySide();
  for (const [what, odd] of [
    ['a line feed', '\n'],
    ['an escape sequence', '\u001b[2K'],
    ['a carriage return', '\r'],
    ['a backspace', '\b\b'],
    ['a C1 control', '\u009b2K'],
    ['a right-to-left override', '\u202e'],
    ['a line separator', '\u2028'],
  ] as const) {
    together(`a path with ${what} is said with it written out, at start and later`, async (t) => {
      const path = join(folder, `${(files += 1)}${odd}error: all is well.json`);
      const shown = path.replaceAll(
        /[^\x20-\x7e]/g,
        (char) => `\\u${char.charCodeAt(0).toString(16).padStart(4, '0')}`,
      );
      assert.throws(
        () => start(path),
        (error) => error instanceof KeyError && error.code === 'missing' && error.message.startsWith(`${shown}: `),
      );
      writeFileSync(path, setOf(a), { mode: 0o604 });
      const { events } = await follow(t, path);
      writeFileSync(path, '{');
      await until(() => events.length === 1);
      assert.ok(events[0]?.message?.startsWith(`${shown}: `));
      await until(() => warned.filter(({ message }) => message.includes(shown)).length === 2);
      for (const { message } of warned) assert.doesNotMatch(message, /[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e]/);
    });
  }
});

for (const source of ['keyFile', 'MCP_KEY_FILE_PATH'] as const) {
  test(`a relative ${source} is the file it was at construction, wherever the process goes`, async (t) => {
    const path = write(setOf(a));
    const [from, set] = [process.cwd(), process.env['MCP_KEY_FILE_PATH']];
    t.after(() => {
      process.chdir(from);
      delete process.env['MCP_KEY_FILE_PATH'];
      if (set !== undefined) process.env['MCP_KEY_FILE_PATH'] = set;
    });
    process.chdir(folder);
    const relative = basename(path);
    if (source === 'MCP_KEY_FILE_PATH') process.env['MCP_KEY_FILE_PATH'] = relative;
    const { events, published } = await follow(t, relative, source === 'keyFile' ? {} : { keyFile: undefined });
    process.chdir(tmpdir());
    await look(path);
    assert.deepEqual(events, []);
    writeFileSync(path, setOf(b));
    await until(() => events.length === 1);
    assert.equal(await published(), b.kid);
  });
}

// ## While it runs: which key when

describe('the keys as time goes by', () => {
  const together = sideBySide();
  together(
    'a file whose keys have all expired is valid: 503 for tokens and documents, until there are others',
    async (t) => {
      const path = write(setOf(a));
      const verifier = start(path);
      const { clock, events, get, ask, jwks, published } = await follow(t, path);
      const [known, fresh] = [await mint(a), await mint(b)];
      assert.equal(await ask(known), 200);
      assert.equal(verifier.isReady(), true);
      clock.now += 5;
      writeFileSync(path, setOf({ ...a, exp: NOW - 1 }, { ...b, exp: NOW }));
      await until(() => events.length === 1);
      assert.deepEqual(events.splice(0), [loaded(undefined)]);
      for (const answer of [await get(known), await get(fresh), await get(await withoutKid(a)), await jwks()]) {
        assert.equal(answer.status, 503);
        assert.match(String(answer.headers.get('retry-after')), /^[1-9]/);
        assert.equal(answer.headers.get('cache-control'), 'no-store');
        assert.equal(Object(await answer.json()).error, 'temporarily_unavailable');
      }
      await until(() => !verifier.isReady());
      assert.deepEqual(verifier.getJwks(), { keys: [] });
      writeFileSync(path, setOf(b));
      await until(() => events.length === 1);
      assert.deepEqual([await ask(fresh), await ask(known), await published()], [200, 401, b.kid]);
      await until(() => verifier.isReady());
    },
  );

  together('publishes the newest key whose time has come, and decrypts with each until it expires', async (t) => {
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

  for (const from of ['a file', 'keys given in place'] as const) {
    together(`keys.active says that time has changed the published key, of ${from}`, async (t) => {
      const keys = [
        { ...a, iat: NOW - 1000, exp: NOW + 900 },
        { ...b, nbf: NOW + 600, exp: NOW + 2000 },
        { ...c, iat: NOW - 2000, exp: NOW + 100 },
      ];
      const path = write(setOf(...keys));
      const { clock, events } = await follow(t, path, from === 'a file' ? {} : { keyFile: undefined, keys: { keys } });
      const at = async (seconds: number): Promise<AuthEvent[]> => {
        clock.now = NOW + seconds;
        await until(() => events.length > 0);
        return events.splice(0);
      };
      const kids = (...names: (string | undefined)[]): { kids: (string | undefined)[] } => ({ kids: names });
      const loadedAgain = { type: 'keys.loaded', ...kids(a.kid, b.kid), keyId: a.kid, nextExpiry: NOW + 900 };
      assert.deepEqual(await at(100), [loadedAgain], 'the next expiry is another one');
      const active = { type: 'keys.active', ...kids(a.kid, b.kid), keyId: b.kid, nextExpiry: NOW + 900 };
      assert.deepEqual(await at(600), [active]);
      assert.deepEqual(await at(599), [{ ...active, keyId: a.kid }], 'the clock was set back');
      assert.deepEqual(await at(600), [active]);
      assert.deepEqual(await at(900), [{ ...active, type: 'keys.loaded', ...kids(b.kid), nextExpiry: NOW + 2000 }]);
      assert.deepEqual(await at(2000), [{ type: 'keys.active', kids: [] }], 'none is published any more');
    });
  }
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
  const { clock, events, ask, published } = await follow(t, path);
  const tokens = await Promise.all(Array.from({ length: 1000 }, (_, i) => mint(a, { i })));
  const all = async (): Promise<number[]> => {
    const statuses: number[] = [];
    for (let i = 0; i < tokens.length; i += 100)
      statuses.push(...(await Promise.all(tokens.slice(i, i + 100).map(ask))));
    return [...new Set(statuses)];
  };
  assert.equal(await countRsa(async () => assert.deepEqual(await all(), [200])), 1000);
  const selfTest = await countRsa(async () => {
    writeFileSync(path, setOf({ ...a, exp: NOW + 1000 }, { ...b, iat: NOW }));
    while (events.length === 0) assert.deepEqual(await all(), [200]); // across the look
    assert.deepEqual(await all(), [200]);
  });
  assert.equal(selfTest, 1);
  assert.equal(await published(), b.kid);
  clock.now = NOW + 999;
  assert.equal(await countRsa(async () => assert.deepEqual(await all(), [200])), 0);
  clock.now = NOW + 1000; // the old key expires, and with it what it decrypted
  assert.equal(await countRsa(async () => assert.deepEqual(await all(), [401])), 0);
});

test('a key that is taken out of the file takes its known tokens with it, and only those', async (t) => {
  const path = write(setOf(a, b));
  const { events, ask } = await follow(t, path);
  const tokens = [await mint(a), await mint(b)];
  for (const token of tokens) assert.equal(await ask(token), 200);
  writeFileSync(path, setOf(b));
  await until(() => events.length === 1);
  assert.equal(
    await countRsa(async () => assert.deepEqual([await ask(tokens[0] ?? ''), await ask(tokens[1] ?? '')], [401, 200])),
    0,
  );
  const selfTestAndDecryption = await countRsa(async () => {
    writeFileSync(path, setOf(a, b));
    await until(() => events.length === 2);
    assert.equal(await ask(tokens[0] ?? ''), 200);
  });
  assert.equal(selfTestAndDecryption, 2);
});

test('the same keys in another order, with other times, spelled differently, cost no known token', async (t) => {
  const path = write(setOf(a, b));
  const { events, ask } = await follow(t, path);
  const tokens = [await mint(a), await mint(b)];
  for (const token of tokens) assert.equal(await ask(token), 200);
  const same = [
    setOf(b, a),
    setOf({ ...a, exp: NOW + 5000 }, { ...b, nbf: NOW - 10 }),
    JSON.stringify({ keys: [a, b] }, null, 2),
    setOf({ ...a, use: undefined, key_ops: ['decrypt'] }, { x5t: 'x', ...b }, { ...c, exp: NOW - 1 }),
  ];
  const cost = await countRsa(async () => {
    for (const [index, content] of same.entries()) {
      writeFileSync(path, content);
      await until(() => events.length === index + 1);
      for (const token of tokens) assert.equal(await ask(token), 200, content);
    }
  });
  assert.equal(cost, 1, "the self-test of the third key of the last file, which no token's was");
});

test('another key under the same kid takes the known tokens of the first with it', async (t) => {
  const path = write(setOf({ ...a, kid: 'key' }));
  const { events, ask } = await follow(t, path);
  const tokens = [await mint({ ...a, kid: 'key' }), await mint({ ...b, kid: 'key' })];
  assert.deepEqual([await ask(tokens[0] ?? ''), await ask(tokens[1] ?? '')], [200, 401]);
  writeFileSync(path, setOf({ ...b, kid: 'key' }));
  await until(() => events.length === 1);
  assert.deepEqual([await ask(tokens[0] ?? ''), await ask(tokens[1] ?? '')], [401, 200]);
});

test('a decryption under way when its key is taken out neither answers nor fills the cache', async (t) => {
  const path = write(setOf(a, b));
  const { events, ask } = await follow(t, path);
  const token = await mint(a);
  const release = hold(t);
  const answer = ask(token);
  await until(() => rsa.running === 1);
  writeFileSync(path, setOf(b));
  await until(() => events.length === 1);
  release();
  assert.equal(await answer, 401);
  const selfTestAndDecryption = await countRsa(async () => {
    writeFileSync(path, setOf(a, b));
    await until(() => events.length === 2);
    assert.equal(await ask(token), 200);
  });
  assert.equal(selfTestAndDecryption, 2);
});

test('a decryption under way when its key is read again is accepted', async (t) => {
  const path = write(setOf(a));
  const { events, ask } = await follow(t, path);
  const token = await mint(a);
  const release = hold(t);
  const answer = ask(token);
  await until(() => rsa.running === 1);
  writeFileSync(path, setOf({ ...a, exp: NOW + 500 }));
  await until(() => events.length === 1);
  release();
  assert.equal(await answer, 200);
});

test('known tokens are served by the old keys while a new key is being tested', async (t) => {
  const path = write(setOf(a));
  const { events, ask, published } = await follow(t, path);
  const token = await mint(a);
  assert.equal(await ask(token), 200);
  const release = hold(t);
  writeFileSync(path, setOf({ ...b, iat: NOW }));
  await until(() => rsa.running === 1);
  assert.deepEqual([await ask(token), await published()], [200, a.kid]);
  release();
  await until(() => events.length === 1);
  assert.deepEqual([await ask(token), await published()], [401, b.kid]);
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

// ## While it runs: clocks and hangs

describe('a clock', () => {
  for (const seconds of [10.5, 60, 3600, 86_400, 10 * 365 * 86_400]) {
    for (const step of [seconds, -seconds]) {
      test(`a clock that was set by ${step} s, or a process frozen for so long, looks before it judges`, async (t) => {
        const path = write(setOf(a, b));
        const { clock, events, ask, published } = await follow(t, path);
        writeFileSync(path, setOf(c));
        const since = looks.opened.length;
        clock.now += step;
        const answers = await Promise.all(Array.from({ length: 20 }, () => published()));
        assert.deepEqual(new Set(answers), new Set([c.kid]));
        assert.ok(opensOf(path, since) <= 2, 'they share one look; the timer may begin another');
        assert.deepEqual(events, [loaded(c.kid, c.kid)]);
        clock.now -= step; // and back
        writeFileSync(path, setOf(d));
        assert.equal(await published(), d.kid);
        assert.equal(await ask(await mint(d)), 200);
      });
    }
  }
});

test('a look that began before the clock was set is not the one that counts', async (t) => {
  const path = write(setOf(a));
  const { clock, events, published } = await follow(t, path);
  const release = hold(t);
  writeFileSync(path, setOf(b));
  await until(() => rsa.running === 1); // the self-test of a look that has read the file
  writeFileSync(path, setOf(c));
  clock.now += 11;
  const asked = published();
  await sleep(100);
  release();
  assert.equal(await asked, c.kid);
  assert.deepEqual(events, [loaded(b.kid, b.kid), loaded(c.kid, c.kid)]);
});

/** Its answer and the milliseconds until then. */
async function timed<T>(work: () => Promise<T>): Promise<[result: T, ms: number]> {
  const began = performance.now();
  const result = await work();
  return [result, performance.now() - began];
}

const HANGS =
  'a look that hangs is waited for 1 s by a process that was frozen, then by nobody, is said after 5 s, and recovers';
test(HANGS, async (t) => {
  const path = write(setOf(a));
  const { clock, events, ask, published } = await follow(t, path);
  const [known, late] = [await mint(a, { iat: NOW - 10_000 }), await mint(b, { iat: NOW - 10_000 })];
  assert.equal(await ask(known), 200);
  await until(() => looks.running === 0);
  const release = hangOpen(t, path);
  clock.now += 11;
  const waits = await Promise.all(
    [known, await mint(a, { iat: NOW - 10_000 })].map((token) => timed(() => ask(token))),
  );
  for (const [status, ms] of waits) {
    assert.equal(status, 200);
    assert.ok(ms > 800 && ms < 3000, `waited ${ms} ms`);
  }
  writeFileSync(path, setOf(b));
  for (const step of [0, 11, 3600, -7200]) {
    clock.now += step;
    const [status, ms] = await timed(() => ask(known));
    assert.equal(status, 200);
    assert.ok(ms < 700, `waited ${ms} ms after the clock went ${step} s`);
  }
  assert.deepEqual(events, [], 'not said before 5 s');
  await until(() => events.length === 1);
  const message = `${path}: has not answered for 5 s; the last good keys go on`;
  assert.deepEqual(events, [{ type: 'keys.failed', code: 'unreadable', message }]);
  assert.equal(warned.filter((warning) => warning.message === message).length, 1);
  assert.equal(await published(), a.kid);
  release();
  await until(() => events.length === 2);
  assert.deepEqual(events[1], loaded(b.kid, b.kid));
  assert.deepEqual([await ask(late), await ask(known)], [200, 401]);
});

test('however many key files hang, one open hangs, and the thread pool and forged tokens go their way', async (t) => {
  const paths = Array.from({ length: 6 }, () => write(setOf(a)));
  const servers = await Promise.all(paths.map((path) => follow(t, path, { maxPending: 8 })));
  const other = write(setOf(a));
  const bystander = await follow(t, other);
  await until(() => looks.running === 0);
  looks.most = 0;
  const releases = paths.map((path) => hangOpen(t, path));
  await until(() => looks.running === 1);
  const forged = await Promise.all(Array.from({ length: 100 }, (_, i) => mint(b, { i })));
  for (const { clock } of servers) clock.now += 30;
  await sleep(1500);
  for (const { ask } of servers) {
    const statuses = await Promise.all(forged.map(ask));
    assert.deepEqual(new Set(statuses), new Set([401]), 'forged tokens with unknown kids wait for nothing');
    assert.equal(await ask(await mint(a)), 200, 'a new honest one');
  }
  assert.equal(await bystander.ask(await mint(a)), 200);
  assert.equal(looks.most, 1);
  await until(() => bystander.events.length === 1);
  const message = `${other}: waits for another key file, which hangs; the last good keys go on`;
  assert.deepEqual(bystander.events, [{ type: 'keys.failed', code: 'unreadable', message }]);
  for (const path of [...paths, other]) writeFileSync(path, setOf(c));
  for (const release of releases) release();
  for (const { events } of [...servers, bystander]) await until(() => events.at(-1)?.keyId === c.kid);
  assert.equal(looks.most, 1);
});

test('each of several verifiers follows its own file, and two of one file the same', async (t) => {
  const paths = Array.from({ length: 5 }, () => write(setOf(a)));
  const [first = ''] = paths;
  const servers = await Promise.all([...paths, first].map((path) => follow(t, path)));
  for (const [key, kid] of [
    [b, b.kid],
    [c, c.kid],
  ] as const) {
    const began = performance.now();
    for (const path of paths) writeFileSync(path, setOf(key));
    for (const { events } of servers) await until(() => events.some(({ keyId }) => keyId === kid));
    assert.ok(performance.now() - began < 3000, 'each within seconds');
  }
  for (const { events } of servers) assert.deepEqual(events, [loaded(b.kid, b.kid), loaded(c.kid, c.kid)]);
});

test('a verifier that nobody holds is collected, and its file is looked at no more', async () => {
  const path = write(setOf(a));
  const held = ((): object[] => {
    const verifier = new JWETokenVerifier({ keyFile: path });
    return [verifier, withAuth(() => {}, { verifier })];
  })();
  await look(path);
  const dropped = held.splice(0).map((one) => new WeakRef(one)); // not before: it could be collected without a look
  for (const reference of dropped) assert.ok(await isCollected(reference));
  await until(() => {
    collect();
    return looks.running === 0;
  });
  await sleep(1500);
  collect();
  const since = looks.opened.length;
  await sleep(2500);
  assert.equal(opensOf(path, since), 0);
});

describe('a process of its own', () => {
  const together = sideBySide();

  together('neither the timer nor an issuer that hangs keeps a process alive', async (t) => {
    const { url } = await serve(t, () => {}); // never answers
    const issuers = `{ audience: 'a', trustedIssuers: [
      { issuer: 'url', jwks: new URL('${url}') }, { issuer: 'function', jwks: () => new Promise(() => {}) } ] }`;
    const later = (ms: number): string => `await new Promise((resolve) => setTimeout(resolve, ${ms}));`;
    const env = { MCP_KEY_FILE_PATH: write(setOf(a, b)) };
    for (const [what, source, seconds] of [
      ['a file', 'new JWETokenVerifier();', 3],
      ['a file, some looks later', `new JWETokenVerifier(); ${later(2500)}`, 6],
      ['issuers that were not asked yet', `new JWETokenVerifier(${issuers});`, 3],
      ['issuers that were asked', `new JWETokenVerifier(${issuers}); ${later(1500)}`, 11],
    ] as const) {
      const args = ['--no-warnings', writeProgram(source)];
      const [{ code, signal, stderr }, ms] = await timed(() => run(process.execPath, args, { env, timeout: 40_000 }));
      assert.deepEqual([code, signal, stderr], [0, null, ''], what);
      assert.ok(ms < seconds * 1000, `${what}: ${ms} ms`);
    }
  });

  together('what a first request starts for good is outside of every storage of that request', async (t) => {
    const path = write(setOf(a));
    const program = writeProgram(`
      import { AsyncLocalStorage } from 'node:async_hooks';
      const storage = new AsyncLocalStorage();
      const onEvent = ({ type }) => console.log(type, storage.getStore());
      // Held, because the timer keeps no handler that nobody else holds.
      globalThis.handler = storage.run('the request', () => withAuth(() => {}, { onEvent }));
      setTimeout(() => {}, 30_000);`);
    const env = { ...process.env, MCP_KEY_FILE_PATH: path };
    const child = spawn(process.execPath, [program], { env, stdio: ['ignore', 'pipe', 'ignore'] });
    t.after(() => child.kill('SIGKILL'));
    assert.equal(String((await once(child.stdout, 'data'))[0]), 'keys.loaded the request\n');
    writeFileSync(path, setOf(b));
    assert.equal(String((await once(child.stdout, 'data'))[0]), 'keys.loaded undefined\n');
  });

  /** Makes every look of a program take 0.4 s, as on a slow share, and print that it has begun. */
  const SLOW = `
    import files from 'node:fs/promises';
    import { syncBuiltinESMExports } from 'node:module';
    const { open } = files;
    files.open = async (...args) => {
      console.log('look');
      await new Promise((resolve) => setTimeout(resolve, 400));
      return open(...args);
    };
    syncBuiltinESMExports();`;
  const isNode = !('Bun' in globalThis || 'Deno' in globalThis);
  for (const when of ['between two looks', 'during a look'] as const) {
    together(
      `a process that was stopped ${when}, for longer than 10 s, judges by the keys of now when it goes on`,
      async (t) => {
        const path = write(setOf(a));
        const program = writeProgram(`
        ${when === 'during a look' ? SLOW : ''}
        import { createServer } from 'node:http';
        const server = createServer(withAuth((req, res) => res.end())).listen(0, '127.0.0.1', () => {
          console.log(server.address().port);
        });`);
        const env = { ...process.env, MCP_KEY_FILE_PATH: path };
        const child = spawn(process.execPath, ['--no-warnings', program], {
          env,
          stdio: ['ignore', 'pipe', 'inherit'],
        });
        t.after(() => child.kill('SIGKILL'));
        const ended = once(child, 'exit').then(([code, signal]) => assert.fail(`it ended with ${code ?? signal}`));
        const [printed] = await Promise.race([once(child.stdout, 'data'), ended]);
        const [port] = /\d+/.exec(String(printed)) ?? [];
        const { pid } = child;
        assert.ok(pid); // signals go to it: child.kill of Deno does nothing after its first signal, whatever that was
        const ask = async (token: string): Promise<number> => {
          const headers = { authorization: `Bearer ${token}` };
          const signal = AbortSignal.timeout(30_000); // a process that stays stopped never answers
          return (await fetch(`http://127.0.0.1:${Number(port)}`, { headers, signal })).status;
        };
        const [old, fresh] = await Promise.all(
          [a, b].map((key) => encryptToken({ sub: 'alice' }, publicOf(key), { expiresIn: 3600 })),
        );
        assert.ok(old && fresh);
        assert.deepEqual([await ask(old), await ask(fresh)], [200, 401]);
        if (when === 'during a look') {
          await once(child.stdout, 'data');
          await sleep(100);
        }
        process.kill(pid, 'SIGSTOP');
        writeFileSync(path, setOf(b));
        await sleep(11_500);
        const asked = [old, fresh, old, fresh].map(ask); // at hand when it goes on, before its timer has run
        await sleep(200);
        process.kill(pid, 'SIGCONT');
        assert.deepEqual(await Promise.all(asked), [401, 200, 401, 200]);
      },
      {
        skip:
          (process.platform === 'win32' && 'no SIGSTOP') ||
          (when === 'during a look' && !isNode && 'a program of this runtime sees its own fs/promises alone'),
      },
    );
  }
});
