// What is left when the command is killed before, in or after any operation that changes a file, and what the next run
// makes of it: complete old keys or complete new ones, and after the next run no key material but the pair's.
import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import { linkSync, mkdirSync, readFileSync, readdirSync } from 'node:fs';
import { basename, join } from 'node:path';
import { after, before, describe, test } from 'node:test';
import { publicJwks, type Jwk, type JwkSet } from 'mcp-auth-middleware';
import { cli, contents, folder, mcp, mode } from './support/command.js';
import { root, run, type Scope } from './support/support.js';

const preload = join(root, 'build/test/support/kill.js');
const home = folder({ after });
const keys = join(home, '.keys');
let old: JwkSet;
before(async () => {
  const { code, stderr } = await mcp(home, ['generate', '--bits', '2048']);
  assert.equal(code, 0, stderr);
  old = setIn(readFileSync(join(keys, 'mcp-private.json'), 'utf8'));
});

const bits = ['--bits', '2048'];
/**
 * The commands that are killed, on no keys (false) or on the old pair, and how many of their operations there are at
 * least.
 */
const killed: [args: string[], onKeys: boolean, least: number][] = [
  [['generate', ...bits], false, 15],
  [['generate', '-f', ...bits], true, 25],
  [['rotate'], true, 20],
  [['k8s', ...bits], false, 15],
  [['k8s', '-f', ...bits], true, 25],
  [['clean'], true, 16],
];
/** The runs after it, and what they may change: nothing of a pair that is there, or all of it. */
const next: [args: string[], does: 'keeps' | 'makes' | 'replaces' | 'rotates' | 'destroys'][] = [
  [['generate', ...bits], 'makes'],
  [['rotate'], 'rotates'],
  [['k8s', '--from', '.keys/mcp-private.json'], 'keeps'],
  [['clean', '--stale'], 'keeps'],
  [['generate', '-f', ...bits], 'replaces'],
  [['k8s', '-f', ...bits], 'replaces'],
  [['clean'], 'destroys'],
];

const setIn = (text: string): JwkSet => JSON.parse(text);
const temporary = /^mcp-(private|public)\.json\.mcp-auth-\d+-[0-9a-f]{12}\.tmp$/;
const withoutTimes = ({ nbf: _nbf, exp: _exp, ...jwk }: Jwk): Jwk => jwk;
const kidsOf = (set: JwkSet): string => set.keys.map(({ kid }) => kid).join();

/** Whose keys a text is: the old ones, new ones, the old and a new one; zeros, half a file, or nothing. */
function content(text: string | undefined): string {
  if (text === undefined) return 'none';
  if (text === '') return 'empty';
  if (/^\0+$/.test(text)) return 'zeros';
  try {
    const set = setIn(text);
    const had = set.keys.some(({ kid }) => kid === old.keys[0]?.kid);
    const kind = set.keys.some((jwk) => 'd' in jwk) ? '' : ' public';
    return `${had ? (set.keys.length > 1 ? 'old+new' : 'old') : 'new'}${kind}`;
  } catch {
    return 'rubbish';
  }
}

/** The state of a folder of keys, in words: equal words are equal states for a next run. */
function stateOf(path: string): string {
  const files = contents(path);
  const temporaries = Object.entries(files).filter(([name]) => temporary.test(name));
  const words = temporaries.map(
    ([name, text]) => `${name.startsWith('mcp-private') ? 'private' : 'public'} ${content(text)}`,
  );
  const pair = `private ${content(files['mcp-private.json'])}, public ${content(files['mcp-public.json'])}`;
  return `${pair}; temporary: ${words.sort().join(', ') || 'none'}`;
}

/** Holds what must be true at every moment: whole files, and a public half that the private one fits. */
function checkMoment(path: string, args: string[], onKeys: boolean): void {
  const files = contents(path);
  const { 'mcp-private.json': privateText, 'mcp-public.json': publicText } = files;
  for (const name of Object.keys(files)) {
    assert.match(name, /^mcp-(private|public)\.json(\.mcp-auth-\d+-[0-9a-f]{12}\.tmp)?$/);
    if (name.startsWith('mcp-private')) assert.equal(mode(join(path, name)), '0600');
  }
  if (privateText === undefined) {
    assert.ok(!onKeys || args[0] === 'clean', 'a private key must never be missing while it is replaced');
    return assert.equal(publicText, undefined, 'there must be no public key without its private one');
  }
  const set = setIn(privateText);
  if (args[0] === 'rotate') assert.ok(set.keys.some(({ kid }) => kid === old.keys[0]?.kid));
  if (publicText === undefined) return;
  const mine = new Set(set.keys.map(({ kid }) => kid));
  for (const { kid } of setIn(publicText).keys)
    assert.ok(mine.has(kid), 'a public key that the private set does not hold');
}

/** Holds what must be true after the next run. */
async function checkAfter(home: string, before: JwkSet | undefined, does: string): Promise<void> {
  const path = join(home, '.keys');
  const { 'mcp-private.json': privateText, 'mcp-public.json': publicText, ...others } = contents(path);
  assert.deepEqual(Object.keys(others), [], 'nothing is left but the pair');
  if (does === 'destroys') return assert.equal(privateText ?? publicText, undefined);
  if (!before && does !== 'makes' && does !== 'replaces') return assert.equal(privateText ?? publicText, undefined);
  assert.ok(privateText !== undefined && publicText !== undefined, 'both halves are there');
  const set = setIn(privateText);
  if (before && (does === 'keeps' || does === 'makes')) assert.deepEqual(set, before, 'a live key was touched');
  if (before && does === 'replaces') assert.notEqual(kidsOf(set), kidsOf(before));
  if (before && does === 'rotates') assert.equal(set.keys.length, before.keys.length + 1);
  const halves = setIn(publicText).keys;
  assert.deepEqual(publicJwks(set).keys[0], halves[0] && withoutTimes(halves[0]), 'the published key comes first');
  assert.deepEqual(halves.map(({ kid }) => kid).sort(), set.keys.map(({ kid }) => kid).sort());
  for (const [at, file] of [path, join(path, 'mcp-private.json')].entries())
    assert.equal(mode(file), at ? '0600' : '0700');
}

/** A second name for every temporary file, to see what became of its octets. */
function witnesses(t: Scope, path: string): { witness: string; isLive: boolean; isSecret: boolean }[] {
  const place = folder(t);
  const text = contents(path);
  return Object.keys(text)
    .filter((name) => temporary.test(name))
    .map((name) => {
      const witness = join(place, basename(name));
      linkSync(join(path, name), witness);
      const isLive = text[name] !== '' && text[name] === text['mcp-private.json'];
      return { witness, isLive, isSecret: name.startsWith('mcp-private') };
    });
}

async function nextRun(t: Scope, from: string, args: string[], does: string): Promise<string> {
  const home = folder(t);
  execFileSync('cp', ['-a', from, join(home, '.keys')]); // with two names of one file as they are
  const path = join(home, '.keys');
  const had = contents(path)['mcp-private.json'];
  const seen = witnesses(t, path);
  const { code, stderr } = await mcp(home, args);
  const refuses = had === undefined ? does === 'rotates' || args.includes('--from') : does === 'makes';
  assert.equal(code, refuses ? 1 : 0, `${args.join(' ')}: ${stderr}`);
  await checkAfter(home, had === undefined ? undefined : setIn(had), does);
  for (const { witness, isLive, isSecret } of seen) {
    if (isLive && does !== 'destroys' && does !== 'replaces' && does !== 'rotates') continue;
    if (isSecret) assert.ok(/^\0*$/.test(readFileSync(witness, 'latin1')), 'octets of a private key are left');
    if (args[0] !== 'clean') assert.match(stderr, new RegExp(`destroyed \\.keys/${basename(witness)}`), 'it is named');
  }
  return stateOf(path).replace('; temporary: none', '');
}

/** The operations of a run that nobody kills. */
async function operationsOf(t: Scope, args: string[], onKeys: boolean): Promise<string[]> {
  const home = folder(t, onKeys ? keys : undefined);
  const log = join(home, 'log');
  const { code, stderr } = await run(process.execPath, ['--import', preload, cli, ...args], {
    cwd: home,
    env: { MCP_TEST_LOG: log },
  });
  assert.equal(code, 0, stderr);
  return readFileSync(log, 'utf8').trim().split('\n');
}

/** What the next runs made of each state that was found. */
const known = new Map<string, string[]>();

describe('killed', { concurrency: 2 }, () => {
  for (const [args, onKeys, least] of killed) {
    const command = args.filter((word) => !bits.includes(word)).join(' ');
    test(`${command} leaves old or new keys at every operation, and the next run nothing else`, async (t) => {
      const operations = await operationsOf(t, args, onKeys);
      assert.ok(operations.length >= least, operations.join());
      const kills = operations.flatMap((name, at) => [
        [name, at + 1, 'before'] as const,
        ...(/^(write|spawn)/.test(name) ? [[name, at + 1, 'in'] as const] : []),
        ...(at + 1 === operations.length ? [[name, at + 1, 'after'] as const] : []),
      ]);
      const states = new Set<string>();
      for (const [name, number, moment] of kills) {
        const home = folder(t, onKeys ? keys : undefined);
        const path = join(home, '.keys');
        const env = { MCP_TEST_KILL: `${number} ${moment}` };
        const { signal } = await run(process.execPath, ['--import', preload, cli, ...args], { cwd: home, env });
        assert.equal(signal, 'SIGKILL', `${name} ${number} ${moment}`);
        mkdirSync(path, { recursive: true, mode: 0o700 });
        checkMoment(path, args, onKeys);
        const state = stateOf(path);
        // Three of the next runs for a state that no run was tried on yet: the machine's time is not endless.
        const left = known.get(state) ?? [];
        const runs = known.has(state) ? [] : [0, 1, 2].map((step) => next[(known.size * 3 + step) % next.length]);
        known.set(state, left);
        states.add(state);
        for (const [words, does] of runs.map((one) => one ?? assert.fail()))
          left.push(
            `${words.filter((word) => !bits.includes(word)).join(' ')}: ${await nextRun(t, path, words, does)}`,
          );
        t.diagnostic(`${command} | ${moment} ${name} ${number} | ${state} | ${left.join(' / ')}`);
      }
      t.diagnostic(`${command}: ${kills.length} kills, ${states.size} different states`);
    });
  }
});

test('a temporary file of a run under way is left alone, whichever command comes by', async (t) => {
  const home = folder(t, keys);
  const path = join(home, '.keys');
  const name = `mcp-private.json.mcp-auth-${process.pid}-0123456789ab.tmp`; // this process lives
  linkSync(join(path, 'mcp-private.json'), join(path, name));
  const before = contents(path);
  for (const args of [['clean'], ['clean', '--stale']]) {
    const { code, stderr } = await mcp(home, args);
    assert.equal(code, 1);
    assert.match(
      stderr,
      new RegExp(`^error: another run \\(process ${process.pid}\\) is changing the keys in \\.keys; nothing was`),
    );
    assert.deepEqual(contents(path), before);
  }
  assert.deepEqual(readdirSync(path).sort(), Object.keys(before).sort());
});
