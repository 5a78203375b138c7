// Rotations of two real servers under load, which see the new key file at different times and in every way in which
// files change: no request is lost, and no token that was good when it was minted is refused.
import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { constants, createCipheriv, createPublicKey, publicEncrypt, randomBytes } from 'node:crypto';
import { once } from 'node:events';
import { chmodSync, mkdirSync, readFileSync, renameSync, rmSync, symlinkSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { before, after, test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { encryptToken, publicJwks, type Jwk, type JwkSet } from 'mcp-auth-middleware';
import { bound, folder, mcp, without } from './support/command.js';
import { root, type Scope } from './support/support.js';

const program = join(root, 'build/test/support/rotating.js');
const home = folder({ after });
let privateText: string;
before(async () => {
  assert.equal((await mcp(home, ['generate', '--bits', '2048'])).code, 0);
  privateText = readFileSync(join(home, '.keys/mcp-private.json'), 'utf8');
});

/** A server whose permissions are those of a plain user, with its key file; returns its URL. */
async function start(t: Scope, keyFile: string): Promise<string> {
  const [command = '', ...args] = [...bound, process.execPath, '--disable-warning=MCP_AUTH_SELF_ASSERTED', program];
  const child = spawn(command, args, {
    env: { ...process.env, MCP_KEY_FILE_PATH: keyFile },
    stdio: ['ignore', 'pipe', 'ignore'],
  });
  t.after(() => child.kill('SIGKILL'));
  const [line] = await once(child.stdout, 'data');
  return `http://127.0.0.1:${String(line).trim()}`;
}

async function status(url: string, token: string): Promise<number> {
  const response = await fetch(url, { headers: { authorization: `Bearer ${token}` } });
  await response.arrayBuffer();
  return response.status;
}
const jwksOf = async (url: string): Promise<JwkSet> => (await fetch(`${url}/.well-known/jwks.json`)).json();

/** A token as a producer makes it that names no key, as those of the Python package do. */
function withoutKid({ n = '', e = '', alg = 'RSA-OAEP-256' }: Jwk, claims: object): string {
  const aad = Buffer.from(JSON.stringify({ alg, enc: 'A256GCM' })).toString('base64url');
  const [cek, iv] = [randomBytes(32), randomBytes(12)];
  const key = createPublicKey({ key: { kty: 'RSA', n, e }, format: 'jwk' });
  const oaepHash = alg === 'RSA-OAEP' ? 'sha1' : 'sha256';
  const encryptedKey = publicEncrypt({ key, padding: constants.RSA_PKCS1_OAEP_PADDING, oaepHash }, cek);
  const cipher = createCipheriv('aes-256-gcm', cek, iv).setAAD(Buffer.from(aad));
  const ciphertext = Buffer.concat([cipher.update(JSON.stringify(claims)), cipher.final()]);
  return [aad, ...[encryptedKey, iv, ciphertext, cipher.getAuthTag()].map((part) => part.toString('base64url'))].join(
    '.',
  );
}

/** How the second server gets the file that the first one has already. */
const ways: [name: string, deliver: (path: string, text: string) => void | Promise<void>][] = [
  ['by rename', (path, text) => (writeFileSync(`${path}.new`, text, { mode: 0o600 }), renameSync(`${path}.new`, path))],
  ['by a write in place', (path, text) => writeFileSync(path, text)],
  [
    'by deletion and return',
    async (path, text) => (rmSync(path), await sleep(1200), writeFileSync(path, text, { mode: 0o600 })),
  ],
  [
    'after a bad file',
    async (path, text) => (writeFileSync(path, '{"keys":[{}]}'), await sleep(1200), writeFileSync(path, text)),
  ],
  [
    'after a half-written file',
    async (path, text) => (
      writeFileSync(path, text.slice(0, text.length / 2)),
      await sleep(1200),
      writeFileSync(path, text)
    ),
  ],
  [
    'after its permissions were lost',
    async (path, text) => (chmodSync(path, 0), await sleep(1200), writeFileSync(path, text), chmodSync(path, 0o600)),
  ],
  [
    "by Kubernetes' swap of ..data",
    (path, text) => {
      const volume = join(path, '../volume');
      const name = `..${Date.now()}`;
      mkdirSync(join(volume, name));
      writeFileSync(join(volume, name, 'keys'), text, { mode: 0o600 });
      symlinkSync(name, join(volume, '..data_tmp'));
      renameSync(join(volume, '..data_tmp'), join(volume, '..data'));
    },
  ],
];

interface Load {
  counts: Record<string, number>;
  stop(): Promise<void>;
}

/** Mints a token every 50 ms with a key set at most a second old, and sends it and older ones to all servers. */
function load(urls: readonly string[], lifetime: number): Load {
  const counts: Record<string, number> = {};
  const count = (what: string): unknown => (counts[what] = (counts[what] ?? 0) + 1);
  let running = true;
  let seen: { jwks: JwkSet; at: number } | undefined;
  const minted: { token: string; until: number }[] = [];
  const round = async (turn: number): Promise<void> => {
    if (!seen || Date.now() - seen.at > 1000)
      seen = { jwks: await jwksOf(urls[turn % urls.length] ?? ''), at: Date.now() };
    const kid = seen.jwks.keys[0]?.kid ?? '';
    minted.push({
      token: await encryptToken({ sub: 'ada' }, seen.jwks, { expiresIn: lifetime }),
      until: Date.now() + lifetime * 1000,
    });
    count(`key ${kid}`);
    const good = minted.filter(({ until }) => until > Date.now() + 200);
    const some = [good.at(-1), good[0], good[Math.floor(good.length / 2)]];
    const answers = await Promise.all(
      some.flatMap((one) => urls.map((url) => (one ? status(url, one.token).catch(() => 0) : 200))),
    );
    for (const answer of answers) count(String(answer));
  };
  const done = (async () => {
    for (let turn = 0; running; turn += 1) await Promise.all([round(turn), sleep(50)]);
  })();
  return {
    counts,
    async stop() {
      running = false;
      await done;
    },
  };
}

test('seven rotations in seven ways lose no request', { skip: without('setpriv'), timeout: 180_000 }, async (t) => {
  const path = folder(t);
  mkdirSync(join(path, 'volume/..0'), { recursive: true });
  const [first, second] = [join(path, 'first.json'), join(path, 'second.json')];
  for (const file of [first, second, join(path, 'volume/..0/keys')]) writeFileSync(file, privateText, { mode: 0o600 });
  symlinkSync('..0', join(path, 'volume/..data'));
  symlinkSync('..data/keys', join(path, 'volume/keys'));
  const urls = await Promise.all([first, second, join(path, 'volume/keys')].map((file) => start(t, file)));
  const running = load(urls, 3);
  await sleep(1000);
  for (const [name, deliver] of ways) {
    const { code, stderr } = await mcp(path, ['rotate', 'first.json', '-q', '--overlap', '5s', '--grace', '6s']);
    assert.equal(code, 0, `${name}: ${stderr}`);
    const text = readFileSync(first, 'utf8');
    await sleep(1000);
    await deliver(second, text);
    if (!name.includes('..data')) await ways.at(-1)?.[1](second, text);
    else writeFileSync(second, text);
    await sleep(4500);
  }
  await sleep(2000);
  await running.stop();
  const { 200: good = 0, ...others } = running.counts;
  const kinds = Object.keys(others).filter((name) => !name.startsWith('key '));
  t.diagnostic(
    `${good} requests answered 200; others: ${kinds.map((kind) => `${others[kind]} ${kind}`).join() || 'none'}`,
  );
  t.diagnostic(`tokens were minted with ${Object.keys(others).length - kinds.length} keys`);
  assert.deepEqual(kinds, [], JSON.stringify(others));
  assert.ok(good > 500, `${good} requests`);
  assert.equal(Object.keys(others).length, ways.length + 1, 'every key was published in its turn');

  // The revocation: what was minted before is refused as soon as the file is read, what is minted after it is not.
  const old = await encryptToken({ sub: 'ada' }, await jwksOf(urls[0] ?? ''));
  assert.deepEqual(await Promise.all(urls.map((url) => status(url, old))), [200, 200, 200]);
  assert.equal((await mcp(path, ['rotate', 'first.json', '-q', '--overlap', '0s', '--grace', '0s'])).code, 0);
  for (const [, deliver] of [ways[1], ways[6]].map((way) => way ?? assert.fail()))
    await deliver(second, readFileSync(first, 'utf8'));
  await sleep(3000);
  assert.deepEqual(await Promise.all(urls.map((url) => status(url, old))), [401, 401, 401]);
  const fresh = await encryptToken({ sub: 'ada' }, await jwksOf(urls[1] ?? ''));
  assert.deepEqual(await Promise.all(urls.map((url) => status(url, fresh))), [200, 200, 200]);
});

test('an idle replica takes a token of the new key that names no key', { timeout: 60_000 }, async (t) => {
  const path = folder(t);
  const file = join(path, 'keys.json');
  writeFileSync(file, privateText, { mode: 0o600 });
  const url = await start(t, file);
  assert.equal((await mcp(path, ['rotate', 'keys.json', '-q', '--overlap', '0s', '--grace', '1h'])).code, 0);
  await sleep(2500);
  const set: JwkSet = JSON.parse(readFileSync(file, 'utf8'));
  for (const key of set.keys) assert.equal(await status(url, withoutKid(key, { sub: 'ada' })), 200);
});

test('a key file of the Python package rotates, and its producers go on', { timeout: 60_000 }, async (t) => {
  const path = folder(t);
  const file = join(path, 'mcp-private.json');
  const [{ alg: _alg, kid: _kid, use: _use, iat: _iat, ...members } = assert.fail()] = (
    JSON.parse(privateText) as JwkSet
  ).keys;
  writeFileSync(file, JSON.stringify({ keys: [{ ...members, alg: 'RSA-OAEP' }] }), { mode: 0o600 });
  const url = await start(t, file);
  const old = withoutKid({ ...members, alg: 'RSA-OAEP' }, { sub: 'ada' });
  assert.equal(await status(url, old), 200);
  const { code, stderr } = await mcp(path, ['rotate', '-o', '.', '-q', '--overlap', '1s', '--grace', '1h']);
  assert.equal(code, 0, stderr);
  await sleep(3000);
  const [published] = (await jwksOf(url)).keys;
  assert.ok(published && published.n !== members.n && published.alg === 'RSA-OAEP');
  assert.equal(await status(url, old), 200, 'the old token');
  assert.equal(await status(url, withoutKid(published, { sub: 'ada' })), 200, 'a new one');
  const [half] = publicJwks(JSON.parse(readFileSync(join(path, 'mcp-public.json'), 'utf8'))).keys;
  assert.equal(half?.kid, published.kid);
});
