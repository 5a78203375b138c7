// `rotate`: the arithmetic of a rotation, what becomes of the files, and what it refuses.
import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import {
  chmodSync,
  chownSync,
  copyFileSync,
  linkSync,
  lstatSync,
  mkdirSync,
  readFileSync,
  readdirSync,
  rmSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs';
import { join } from 'node:path';
import { after, before, describe, test } from 'node:test';
import { JWETokenVerifier, compactDecrypt, encryptToken, publicJwks, type Jwk, type JwkSet } from 'mcp-auth-middleware';
import { contents, folder, mcp, mcpUnder, mode, without } from './support/command.js';
import { run } from './support/support.js';

const home = folder({ after });
const keys = join(home, '.keys');
const privateFile = '.keys/mcp-private.json';
let first: Jwk;
const setOf = (path: string, name = privateFile): JwkSet => JSON.parse(readFileSync(join(path, name), 'utf8'));
const now = (): number => Math.floor(Date.now() / 1000);
before(async () => {
  const { code, stderr } = await mcp(home, ['generate', '--bits', '2048']);
  assert.equal(code, 0, stderr);
  first = setOf(home).keys[0] ?? assert.fail();
});

/** A folder with a key file of these keys and its public half. */
async function keyFile(t: { after(cleanup: () => unknown): void }, set: JwkSet): Promise<string> {
  const path = folder(t, keys);
  writeFileSync(join(path, privateFile), JSON.stringify(set));
  return path;
}

describe('the arithmetic', { concurrency: 2 }, () => {
  test('adds a key that becomes active after ten minutes and expires the old one a day later', async (t) => {
    const path = folder(t, keys);
    linkSync(join(path, privateFile), join(path, 'old'));
    const from = now();
    const { code, stdout, stderr } = await mcp(path, ['rotate']);
    const until = now();
    assert.equal(code, 0, stderr);
    assert.equal(stdout, 'Keys rotated:\n  Private: .keys/mcp-private.json\n  Public:  .keys/mcp-public.json\n');
    const [made, old, ...others] = setOf(path).keys;
    assert.ok(made?.nbf !== undefined && made.iat !== undefined && old && others.length === 0);
    assert.ok(made.nbf >= from + 600 && made.nbf <= until + 600);
    assert.deepEqual([made.iat, made.alg, made.exp], [made.nbf - 600, 'RSA-OAEP-256', undefined]);
    assert.equal(String(made.n).length, String(first.n).length, 'the size of the published key');
    assert.deepEqual(old, { ...first, exp: made.nbf + 86_400 });
    assert.ok(
      readFileSync(join(path, 'old')).every((octet) => octet === 0),
      'the octets of the old file are destroyed',
    );
    assert.deepEqual(readdirSync(join(path, '.keys')), ['mcp-private.json', 'mcp-public.json']);
    assert.match(stderr, new RegExp(`\\(in 10 min\\): they publish it.*\\n.*\\(in 24 h\\): ${first.kid} expires`));
    // The published key comes first in the public half, and each has its times.
    const halves = setOf(path, '.keys/mcp-public.json').keys;
    assert.deepEqual(
      halves.map(({ kid, nbf, exp, d }) => ({ kid, nbf, exp, d })),
      [
        { kid: first.kid, nbf: undefined, exp: old.exp, d: undefined },
        { kid: made.kid, nbf: made.nbf, exp: undefined, d: undefined },
      ],
    );
    assert.equal(publicJwks(setOf(path)).keys[0]?.kid, first.kid);
    // Both keys decrypt already.
    const verifier = new JWETokenVerifier({ keys: setOf(path) });
    for (const half of publicJwks({ keys: [made] }).keys.concat(publicJwks(setOf(path)).keys))
      assert.equal((await verifier.verifyToken(await encryptToken({ sub: 'ada' }, { keys: [half] }))).sub, 'ada');
  });

  test('tells what happens in its order, where the last old key expires before the overlap is over', async (t) => {
    const path = folder(t, keys);
    const exp = now() + 90;
    writeFileSync(join(path, privateFile), JSON.stringify({ keys: [{ ...first, exp }] }));
    const { code, stderr } = await mcp(path, ['rotate']);
    assert.equal(code, 0, stderr);
    const [publishes, expires] = stderr.split('\n').filter((line) => /publish it|expires/.test(line));
    assert.match(publishes ?? '', /\(in (90|8\d) s\): they publish it/);
    assert.match(expires ?? '', new RegExp(`\\(in (90|8\\d) s\\): ${first.kid} expires`));
  });

  test('refuses a fifth key, and says when to come again only where a key expires', async (t) => {
    const path = folder(t, keys);
    for (const [exp, advice] of [
      [undefined, ''],
      [now() + 7200, 'the next expires [\\d-]{10} [\\d:]{8} UTC \\(in 120 min\\): rotate then, or '],
    ] as const) {
      const four = ['a', 'b', 'c', 'd'].map((kid) => ({ ...first, kid, ...(kid === 'b' && exp && { exp }) }));
      writeFileSync(join(path, privateFile), JSON.stringify({ keys: four }));
      const { code, stderr } = await mcp(path, ['rotate']);
      assert.equal(code, 1);
      assert.match(
        stderr,
        new RegExp(`servers take no fifth; ${advice}revoke them all with --overlap 0s --grace 0s\n`),
      );
    }
  });

  const moments: [name: string, keys: () => Jwk[], args: string[], check: (keys: Jwk[], made: Jwk) => void][] = [
    [
      'keeps an exp that comes before, and drops expired keys',
      () => [
        { ...first, kid: 'a', nbf: 1, exp: now() + 50 },
        { ...first, kid: 'b', exp: now() - 1 },
      ],
      [],
      ([a, ...others], { nbf = 0 }) => {
        assert.ok(a?.kid === 'a' && others.length === 0);
        assert.ok(Number(a.exp) <= nbf - 500);
      },
    ],
    [
      'revokes every key with --overlap 0s --grace 0s',
      () => [{ ...first, kid: 'a' }],
      ['--overlap', '0s', '--grace', '0s'],
      (others, { nbf = Infinity }) => assert.ok(others.length === 0 && nbf <= now()),
    ],
    [
      'takes algorithm and size when they are given',
      () => [first],
      ['--alg', 'RSA-OAEP', '--bits', '3072'],
      (_, made) => assert.deepEqual([made.alg, Buffer.from(String(made.n), 'base64url').length], ['RSA-OAEP', 384]),
    ],
    [
      'lets no key that waits for later take over again from the new one',
      () => [
        { ...first, kid: 'a', nbf: 1 },
        { ...first, kid: 'b', nbf: now() + 5000 },
      ],
      ['--overlap', '5m'],
      (others) =>
        assert.deepEqual(
          others.map(({ kid }) => kid),
          ['a'],
        ),
    ],
    [
      'keeps the key that is published because all before it have expired',
      () => [
        { ...first, kid: 'a', nbf: 1, exp: now() - 1 },
        { ...first, kid: 'b', nbf: now() + 43_200 },
      ],
      [],
      ([b, ...others], { nbf = 0 }) => {
        assert.deepEqual([b?.kid, b?.exp, others], ['b', nbf + 86_400, []]);
        assert.ok(Number(b?.nbf) <= now(), 'it stays the published one');
      },
    ],
    [
      'publishes each key once where the clock was ahead when they were made',
      () => [
        { ...first, kid: 'late', iat: now() + 7300 },
        { ...first, kid: 'early', iat: now() + 7200 },
      ],
      [],
      ([early, ...others], { nbf = 0 }) => {
        assert.deepEqual([early?.kid, others], ['early', []], 'a later one would push the new key out again');
        assert.ok(Number(early?.nbf) <= now() && nbf > now());
      },
    ],
    [
      'keeps what it does not know of a key',
      () => [{ ...first, kid: 'a', nbf: 1, ...{ note: 'mine' } }],
      [],
      ([a]) => assert.equal(Object.entries(a ?? {}).find(([name]) => name === 'note')?.[1], 'mine'),
    ],
  ];
  for (const [name, make, args, check] of moments) {
    test(name, async (t) => {
      const path = await keyFile(t, { keys: make() });
      const { code, stderr } = await mcp(path, ['rotate', ...args]);
      assert.equal(code, 0, stderr);
      const [made, ...others] = setOf(path).keys;
      assert.ok(made);
      check(others, made);
      const halves = setOf(path, '.keys/mcp-public.json').keys.map(({ kid }) => kid);
      assert.deepEqual(
        halves.sort(),
        setOf(path)
          .keys.map(({ kid }) => kid)
          .sort(),
      );
    });
  }

  test('repeats up to four keys, and refuses a fifth without a change', async (t) => {
    const path = folder(t, keys);
    for (const count of [2, 3, 4]) {
      assert.equal((await mcp(path, ['rotate', '-q'])).code, 0);
      assert.equal(setOf(path).keys.length, count);
      assert.equal(publicJwks(setOf(path)).keys[0]?.kid, first.kid, 'the overlap of none of them is over');
    }
    const full = contents(path);
    const { code, stdout, stderr } = await mcp(path, ['rotate']);
    assert.deepEqual([code, stdout, contents(path)], [1, '', full]);
    assert.match(stderr, /^error: \.keys\/mcp-private\.json holds four keys .* rotate then, or revoke them all with /);
    assert.equal((await mcp(path, ['rotate', '--overlap=0s', '--grace=0s'])).code, 0);
    assert.equal(setOf(path).keys.length, 1);
  });

  for (const [args, words] of [
    [['--overlap', '4m'], /^warning: with an overlap under 5m/],
    [['--grace', '299s'], /^warning: with a grace under 5m/],
  ] as const) {
    test(`warns of ${args.join(' ')}`, async (t) => {
      const { code, stderr } = await mcp(folder(t, keys), ['rotate', '-q', ...args]);
      assert.equal(code, 0);
      assert.match(stderr, words);
    });
  }
});

describe('the file', { concurrency: 2 }, () => {
  test('is the one given, that of the folder, that of the environment, that of .keys', async (t) => {
    const path = folder(t, keys);
    for (const name of ['named.json', 'environment.json'])
      copyFileSync(join(keys, 'mcp-private.json'), join(path, name));
    mkdirSync(join(path, 'dir'));
    copyFileSync(join(keys, 'mcp-private.json'), join(path, 'dir/mcp-private.json'));
    const env = { MCP_KEY_FILE_PATH: 'environment.json' };
    const rotated: [args: string[], file: string, env: Record<string, string>][] = [
      [['named.json'], 'named.json', env],
      [['-o', 'dir'], 'dir/mcp-private.json', env],
      [[], 'environment.json', env],
      [[], privateFile, { MCP_KEY_FILE_PATH: '' }],
    ];
    for (const [args, file, environment] of rotated) {
      const { code, stdout } = await mcp(path, ['rotate', '-q', ...args], { env: environment });
      assert.equal(code, 0);
      assert.match(stdout, new RegExp(`^Keys rotated:\\n {2}Private: ${file}\\n`));
      assert.equal(setOf(path, file).keys.length, 2, file);
    }
    assert.deepEqual(
      readdirSync(path).sort(),
      ['.keys', 'dir', 'environment.json', 'named.json'],
      'no public half is put there',
    );
    assert.equal(setOf(path, 'dir/mcp-public.json').keys.length, 2);
  });

  test('keeps its mode and its owner, so that the server can still read it', async (t) => {
    const path = folder(t, keys);
    chmodSync(join(path, privateFile), 0o640);
    const root = process.getuid?.() === 0;
    if (root) chownSync(join(path, privateFile), 12_345, 23_456);
    assert.equal((await mcp(path, ['rotate', '-q'])).code, 0);
    const { uid, gid } = lstatSync(join(path, privateFile));
    assert.equal(mode(join(path, privateFile)), '0640');
    if (root) assert.deepEqual([uid, gid], [12_345, 23_456]);
  });

  test('keeps its access control list, and opens itself to nobody', { skip: without('setfacl') }, async (t) => {
    const path = folder(t, keys);
    const listed = (): string => execFileSync('getfacl', ['-c', join(path, privateFile)], { encoding: 'utf8' });
    execFileSync('setfacl', ['-m', 'u:12345:r', join(path, privateFile)]);
    const before = listed();
    assert.match(before, /^user:12345:r--\ngroup::---$/m);
    assert.equal((await mcp(path, ['rotate', '-q'])).code, 0);
    assert.equal(listed(), before);
  });

  test('is changed by two rotations at once as by one after the other', async (t) => {
    const path = folder(t, keys);
    const runs = await Promise.all([0, 1, 2].map(() => mcp(path, ['rotate', '-q'])));
    assert.deepEqual(
      runs.map(({ code, stderr }) => [code, stderr]),
      runs.map(() => [0, '']),
    );
    assert.equal(setOf(path).keys.length, 4);
    assert.deepEqual(readdirSync(join(path, '.keys')), ['mcp-private.json', 'mcp-public.json']);
  });

  const refused: [name: string, put: (path: string) => void, message: RegExp][] = [
    [
      'a symbolic link',
      (path) => (writeFileSync(join(path, 'x'), ''), symlinkSync('../x', join(path, '.keys/link'))),
      /^error: \.keys\/link is a symbolic link and is not followed/,
    ],
    ['a file that is missing', () => {}, /^error: cannot read \.keys\/link: no such file or directory; make keys/],
    [
      'a public set',
      (path) => copyFileSync(join(keys, 'mcp-public.json'), join(path, '.keys/link')),
      /^error: \.keys\/link holds public keys only; rotate needs the private ones\n$/,
    ],
    [
      'a byte order mark',
      (path) => writeFileSync(join(path, '.keys/link'), `\ufeff${JSON.stringify({ keys: [first] })}`),
      /^error: \.keys\/link: starts with a byte order mark \(BOM\); save it as UTF-8 without one\n$/,
    ],
    [
      'a key without primes',
      (path) => {
        const { n, e, d, kty } = first;
        writeFileSync(join(path, '.keys/link'), JSON.stringify({ kty, n, e, d }));
      },
      /^error: \.keys\/link: .*\n$/,
    ],
    [
      'private and public keys together',
      (path) => {
        const [half] = publicJwks({ keys: [first] }).keys;
        writeFileSync(join(path, '.keys/link'), JSON.stringify({ keys: [first, { ...half, kid: 'other' }] }));
      },
      /^error: \.keys\/link: key 2: is a public key/,
    ],
  ];
  for (const [name, put, message] of [
    ['a symbolic link', (path) => symlinkSync('elsewhere.json', path), 'is a symbolic link and is not followed'],
    ['a FIFO', (path) => execFileSync('mkfifo', [path]), 'is not a regular file'],
  ] satisfies [string, (path: string) => unknown, string][]) {
    for (const args of [['rotate'], ['clean', '--stale']])
      test(`is left by ${args.join(' ')} when its public half is ${name}`, async (t) => {
        const path = folder(t, keys);
        const half = join(path, '.keys/mcp-public.json');
        rmSync(half);
        put(half);
        const old = readFileSync(join(path, privateFile));
        const stale = `${half}.mcp-auth-99999999-aaaaaaaaaaaa.tmp`;
        if (args[0] === 'clean') writeFileSync(stale, '');
        const { code, stderr } = await mcp(path, args);
        assert.match(stderr, new RegExp(`mcp-public\\.json.*${message}`));
        assert.equal(code, args[0] === 'clean' ? 0 : 1);
        assert.deepEqual(readFileSync(join(path, privateFile)), old);
        assert.ok(!lstatSync(half).isFile(), 'nothing was written in its place');
        assert.deepEqual(readdirSync(join(path, '.keys')).sort(), ['mcp-private.json', 'mcp-public.json']);
      });
  }
  for (const [name, put, message] of refused) {
    test(`is refused when it is ${name}, and nothing is changed`, async (t) => {
      const path = folder(t, keys);
      put(path);
      const before = contents(path);
      const { code, stdout, stderr } = await mcp(path, ['rotate', '.keys/link']);
      assert.match(stderr, message);
      assert.deepEqual([code, stdout, contents(path)], [1, '', before]);
    });
  }
});

describe('as a filter', () => {
  test('takes a set from stdin and prints it with the new key', async (t) => {
    const path = folder(t);
    const input = JSON.stringify({ keys: [first] });
    const { code, stdout, stderr } = await mcp(path, ['rotate', '-'], { input });
    assert.equal(code, 0, stderr);
    const set: JwkSet = JSON.parse(stdout);
    assert.equal(set.keys.length, 2);
    assert.equal(set.keys[1]?.kid, first.kid);
    assert.match(stderr, /^New key /);
    assert.deepEqual(readdirSync(path), []);
    await compactDecrypt(await encryptToken({}, publicJwks(set)), set);
  });

  test('warns when others can read the file that it writes to, and refuses a closed standard output', async (t) => {
    const path = folder(t, keys);
    const shell = (script: string) =>
      mcpUnder(path, ['sh', '-c', `umask 022; cat ${privateFile} | "$@" ${script}`, 'sh'], ['rotate', '-q', '-']);
    const warned = await shell('> world.json');
    assert.equal(warned.code, 0);
    assert.match(warned.stderr, /^warning: other users can read the file that this private key is written to/);
    assert.equal((await shell('> /dev/null')).code, 0);
    const closed = await shell('>&-');
    assert.equal(closed.code, 1);
    assert.match(closed.stderr, /^error: standard output is closed/);
    const strict = await run('sh', ['-c', 'umask 077; exec "$@" > mine.json', 'sh', process.execPath, '-p', '1'], {
      cwd: path,
    });
    assert.equal(strict.code, 0);
  });
});
