// What is left when the disk refuses, when a signal comes, and when the command runs twice at once: the old pair or the
// new one. What kills leave is in cli-kills.test.ts.
import assert from 'node:assert/strict';
import { existsSync, linkSync, readFileSync, readdirSync, statSync } from 'node:fs';
import { join } from 'node:path';
import { after, before, describe, test } from 'node:test';
import { publicJwks, type JwkSet } from 'mcp-auth-middleware';
import { contents, folder, mcp, mcpUnder, mode, without } from './support/command.js';

const home = folder({ after });
const keys = join(home, '.keys');
let old: Record<string, string>;
before(async () => {
  const { code, stderr } = await mcp(home, ['generate', '--bits', '2048']);
  assert.equal(code, 0, stderr);
  old = contents(keys);
});

const names = ['mcp-private.json', 'mcp-public.json'];
const make = ['generate', '-q', '--bits', '2048'];

/**
 * Holds what must be true at every moment: whole files, a pair that fits, and the old keys until the new ones are
 * there.
 */
function check(path: string, replaced: boolean): 'old' | 'new' | 'none' {
  const files = contents(join(path, '.keys'));
  const { 'mcp-private.json': privateText, 'mcp-public.json': publicText } = files;
  if (privateText === undefined) {
    assert.deepEqual(
      [replaced, publicText],
      [false, undefined],
      'a private key must never be missing while it is replaced',
    );
    return 'none';
  }
  const set: JwkSet = JSON.parse(privateText);
  if (publicText !== undefined) assert.deepEqual(JSON.parse(publicText), publicJwks(set));
  assert.equal(mode(join(path, '.keys/mcp-private.json')), '0600');
  return privateText === old['mcp-private.json'] ? 'old' : 'new';
}

const below = (action: string, call: string, when: number): string[] => [
  'strace',
  '-qq',
  '-o',
  '/dev/null',
  '-e',
  `inject=${call}:${action}:when=${when}`,
];

describe('refused by the disk', { skip: without('strace'), concurrency: 2 }, () => {
  for (const args of [[...make], [...make, '-f']]) {
    const replaced = args.includes('-f');
    for (const [call, error] of [
      ['fsync', 'EIO'],
      ['?link,?linkat', 'ENOSPC'],
      ['?rename,?renameat,?renameat2', 'EIO'],
    ] as const) {
      if (!replaced && call.includes('rename')) continue;
      const command = replaced ? 'generate -f' : 'generate';
      test(`${command} that fails at any ${call.replaceAll('?', '')} changes nothing`, async (t) => {
        let failures = 0;
        for (let when = 1; when <= 6; when += 1) {
          const path = folder(t, replaced ? keys : undefined);
          const { code, stdout, stderr } = await mcpUnder(path, below(`error=${error}`, call, when), args);
          if (code === 0) break;
          if (/new keys are in place/.test(stderr)) break; // from here on it is the old key that is being destroyed
          failures += 1;
          assert.deepEqual({ code, stdout }, { code: 1, stdout: '' });
          assert.match(
            stderr,
            /^error: cannot write to \.keys: (i\/o error|no space left on device); nothing was changed\n$/,
          );
          assert.deepEqual(
            existsSync(join(path, '.keys')) ? contents(join(path, '.keys')) : undefined,
            replaced ? old : undefined,
          );
        }
        assert.ok(
          failures >= (call === 'fsync' ? 3 : replaced && call.includes('link') ? 1 : 2),
          `${failures} failures`,
        );
      });
    }
  }
});

test('a file that may not grow changes nothing', async (t) => {
  const path = folder(t, keys);
  const { code, stderr } = await mcpUnder(path, ['sh', '-c', 'ulimit -f 0; exec "$@"', 'sh'], [...make, '-f']);
  assert.deepEqual(
    { code, stderr },
    { code: 1, stderr: 'error: cannot write to .keys: file too large; nothing was changed\n' },
  );
  assert.deepEqual(contents(join(path, '.keys')), old);
});

test('k8s saves the pair before it prints it, and a Secret that nobody got is a failure', async (t) => {
  const path = folder(t);
  const { stderr } = await mcpUnder(path, ['sh', '-c', '"$@" >/dev/full; echo $?', 'sh'], ['k8s', '-q'], {});
  assert.match(
    stderr,
    /^error: cannot write to standard output: no space left on device; the new keys are in \.keys\n/,
  );
  const printed = await mcp(path, ['k8s', '-q', '--from', '.keys/mcp-private.json']);
  assert.equal(printed.code, 0);
});

describe('at once', () => {
  test('exactly one of several runs makes the keys', async (t) => {
    const path = folder(t);
    const runs = await Promise.all(Array.from({ length: 6 }, () => mcp(path, make)));
    assert.deepEqual(runs.map(({ code }) => code).sort(), [0, 1, 1, 1, 1, 1]);
    for (const { code, stderr } of runs)
      if (code !== 0) assert.match(stderr, /^error: keys already exist: \.keys\/mcp-private\.json/);
    assert.equal(check(path, true), 'new');
    assert.deepEqual(readdirSync(join(path, '.keys')), names);
  });

  test('several runs with -f leave one pair that fits, and none of the old key', async (t) => {
    const path = folder(t, keys);
    linkSync(join(path, '.keys/mcp-private.json'), join(path, 'old'));
    const runs = await Promise.all(Array.from({ length: 6 }, () => mcp(path, [...make, '-f'])));
    assert.deepEqual(
      runs.map(({ code, stderr }) => [code, stderr.replace(/^warning: .*\(hard links\).*\n/gm, '')]),
      runs.map(() => [0, '']),
    );
    assert.equal(check(path, true), 'new');
    assert.deepEqual(readdirSync(join(path, '.keys')), names);
    assert.ok(readFileSync(join(path, 'old')).every((octet) => octet === 0));
  });

  test('two runs with -f whose steps interleave leave a pair that fits', { skip: without('strace') }, async (t) => {
    const path = folder(t, keys);
    // One of them sleeps before the rename of its public key, and the other waits for it.
    const slow = mcpUnder(
      path,
      ['strace', '-qq', '-o', '/dev/null', '-e', 'inject=?rename,?renameat,?renameat2:delay_enter=1500000:when=3'],
      [...make, '-f'],
    );
    let ended = false;
    void slow.finally(() => (ended = true));
    while (!ended && readFileSync(join(path, '.keys/mcp-private.json'), 'utf8') === old['mcp-private.json'])
      await new Promise((resolve) => setTimeout(resolve, 10));
    const first = readFileSync(join(path, '.keys/mcp-private.json'), 'utf8');
    const fast = await mcp(path, [...make, '-f']);
    assert.equal(fast.code, 0, fast.stderr);
    assert.equal((await slow).code, 0);
    assert.notEqual(readFileSync(join(path, '.keys/mcp-private.json'), 'utf8'), first);
    assert.equal(check(path, true), 'new');
    assert.deepEqual(readdirSync(join(path, '.keys')), names);
    assert.equal(statSync(join(path, '.keys/mcp-public.json')).nlink, 1);
  });
});
