// What an operator's machine does to the command: signals, odd file systems, odd names, closed streams, leftovers of
// other runs.
import assert from 'node:assert/strict';
import { spawn, spawnSync } from 'node:child_process';
import { once } from 'node:events';
import {
  chmodSync,
  chownSync,
  copyFileSync,
  existsSync,
  linkSync,
  mkdirSync,
  readFileSync,
  readdirSync,
  renameSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs';
import { constants } from 'node:os';
import { join } from 'node:path';
import { buffer } from 'node:stream/consumers';
import { after, before, describe, test } from 'node:test';
import { publicJwks } from 'mcp-auth-middleware';
import { bound, cli, contents, folder, mcp, mcpUnder, mode, without } from './support/command.js';
import { root, run, serve, until } from './support/support.js';

const home = folder({ after });
const keys = join(home, '.keys');
let secret: string; // the member d of the old key
before(async () => {
  const { code, stderr } = await mcp(home, ['generate', '--bits', '2048']);
  assert.equal(code, 0, stderr);
  secret = JSON.parse(readFileSync(join(keys, 'mcp-private.json'), 'utf8')).keys[0].d;
});
const make = ['generate', '-q', '--bits', '2048'];
const names = ['mcp-private.json', 'mcp-public.json'];
const holdsSecret = (path: string): string[] =>
  Object.entries(contents(path)).flatMap(([name, text]) => (text.includes(secret) ? [name] : []));

describe('a signal', () => {
  for (const signal of ['SIGINT', 'SIGTERM', 'SIGHUP'] as const) {
    test(`${signal} while a key is made changes nothing and says so`, async (t) => {
      const path = folder(t);
      const child = spawn(process.execPath, [cli, 'generate', '-o', 'a/b'], { cwd: path });
      const stderr = buffer(child.stderr);
      await until(() => existsSync(join(path, 'a/b')));
      child.kill(signal);
      const [code] = await once(child, 'close');
      assert.equal(code, 128 + constants.signals[signal]);
      assert.equal((await stderr).toString(), `error: interrupted by ${signal}; nothing was changed\n`);
      assert.deepEqual(readdirSync(path), []);
    });
  }

  test('while the old key is overwritten waits for that, and says what is in place', async (t) => {
    const path = folder(t, keys);
    writeFileSync(join(path, 'shred'), '#!/bin/sh\nexec /bin/sleep 1\n', { mode: 0o755 });
    const env = { ...process.env, PATH: `${path}:${process.env.PATH}` };
    const child = spawn(process.execPath, [cli, ...make, '-f'], { cwd: path, env });
    const stderr = buffer(child.stderr);
    const isNew = (): boolean => !readFileSync(join(path, '.keys/mcp-private.json'), 'utf8').includes(secret);
    await until(isNew);
    child.kill('SIGINT');
    const [code] = await once(child, 'close');
    assert.equal((await stderr).toString(), 'error: interrupted by SIGINT; the new keys are in .keys\n');
    assert.equal(code, 130);
    assert.deepEqual([readdirSync(join(path, '.keys')), holdsSecret(path)], [names, []]);
  });
});

/** What a program of the test changes in `fs` before the command loads it. */
const preload = (path: string, change: string): void =>
  writeFileSync(join(path, 'preload.mjs'), `import fs from 'node:fs';\n${change}`);
const loaded = (path: string, args: string[]): ReturnType<typeof run> =>
  run(process.execPath, ['--import', './preload.mjs', cli, ...args], { cwd: path });

describe('another run that has taken over, from one that was stopped for a minute,', () => {
  const TAKEN = /another run has taken over the keys in \.keys; look at them with inspect\n$/;

  test('keeps the pair that it has completed', async (t) => {
    const path = folder(t);
    // The other run finds the private key in place, destroys the temporary public half and writes it itself.
    preload(
      path,
      `const { linkSync } = fs;
       fs.linkSync = (from, to) => {
         if (to.endsWith('mcp-public.json')) fs.renameSync(from, to);
         linkSync(from, to);
       };`,
    );
    const { code, stderr } = await loaded(path, make);
    assert.equal(code, 1);
    assert.match(stderr, TAKEN);
    assert.deepEqual(readdirSync(join(path, '.keys')), names);
    assert.equal((await mcp(path, ['inspect'])).code, 0);
  });

  for (const args of [
    [...make, '-f'],
    ['rotate', '-q'],
  ]) {
    test(`keeps its keys: ${args[0]}`, async (t) => {
      const path = folder(t, keys);
      preload(
        path,
        `const { renameSync } = fs;
         fs.renameSync = (from, to) => {
           renameSync(from, to);
           if (to.endsWith('mcp-private.json')) fs.writeFileSync(to, 'of the other run');
         };`,
      );
      const { code, stderr } = await loaded(path, args);
      assert.equal(code, 1);
      assert.match(stderr, TAKEN);
      assert.equal(readFileSync(join(path, '.keys/mcp-private.json'), 'utf8'), 'of the other run');
    });
  }
});

describe('leftovers', () => {
  const dead = spawnSync('true').pid;
  const leftover = (pid: number, name = 'mcp-private.json'): string => `${name}.mcp-auth-${pid}-0123456789ab.tmp`;

  test('of a dead process, of a reused number and of this very number are destroyed and named', async (t) => {
    const path = folder(t, keys);
    const old = join(path, '.keys', leftover(process.pid, 'mcp-public.json'));
    for (const pid of [dead, 0]) writeFileSync(join(path, '.keys', leftover(pid)), secret);
    const { code, stderr } = await mcpUnder(
      path,
      ['sh', '-c', `echo ${secret} > .keys/mcp-private.json.mcp-auth-$$-0123456789ab.tmp; exec "$@"`, 'sh'],
      ['k8s', '-q', '--from', '.keys/mcp-private.json'],
    );
    assert.equal(code, 0);
    assert.equal(
      stderr.match(/^warning: destroyed \.keys\/\S+, which an interrupted run had left$/gm)?.length,
      3,
      stderr,
    );
    assert.deepEqual(readdirSync(join(path, '.keys')), names);
    assert.ok(!existsSync(old));
  });

  test('of a run that is stopped for less than a minute are left, and waited for', async (t) => {
    const path = folder(t);
    mkdirSync(join(path, '.keys'), { mode: 0o700 });
    const name = join(path, '.keys', leftover(process.pid));
    writeFileSync(name, '');
    const running = mcp(path, make);
    await new Promise((resolve) => setTimeout(resolve, 1500));
    assert.deepEqual(
      readdirSync(join(path, '.keys')).filter((one) => names.includes(one)),
      [],
    );
    spawnSync('rm', [name]);
    assert.equal((await running).code, 0);
    assert.deepEqual(readdirSync(join(path, '.keys')), names);
  });

  test('that are a second name of a key in use are told by their content where numbers do not tell', async (t) => {
    const path = folder(t, keys);
    const name = leftover(dead);
    linkSync(join(path, '.keys/mcp-private.json'), join(path, '.keys', name));
    // As over SSH: one link each, and another number for each name that was not opened.
    preload(
      path,
      `const { fstatSync, lstatSync } = fs;
       fs.fstatSync = (...args) => Object.assign(fstatSync(...args), { nlink: 1 });
       fs.lstatSync = (name, ...args) => {
         const stats = lstatSync(name, ...args);
         return stats && Object.assign(stats, { nlink: 1, ino: stats.ino + Number(name.endsWith('${name}')) });
       };`,
    );
    const { code, stdout } = await loaded(path, ['clean', '--stale']);
    assert.deepEqual([code, stdout], [0, `Removed:\n  .keys/${name}\n`]);
    assert.deepEqual([readdirSync(join(path, '.keys')), holdsSecret(path)], [names, ['.keys/mcp-private.json']]);
  });

  test('are destroyed also beside a key file that this user may not read', { skip: without('setpriv') }, async (t) => {
    const path = folder(t, keys);
    const name = leftover(dead);
    writeFileSync(join(path, '.keys', name), secret);
    linkSync(join(path, '.keys', name), join(path, 'witness'));
    chmodSync(join(path, '.keys/mcp-private.json'), 0);
    const { code, stdout } = await mcpUnder(path, bound, ['clean', '--stale']);
    chmodSync(join(path, '.keys/mcp-private.json'), 0o600);
    assert.deepEqual([code, stdout], [0, `Removed:\n  .keys/${name}\n`]);
    assert.deepEqual([readdirSync(join(path, '.keys')), holdsSecret(path)], [names, ['.keys/mcp-private.json']]);
  });

  test('of the other pair are destroyed too, and its public half is written again', async (t) => {
    const path = folder(t, keys);
    assert.equal((await mcp(path, ['generate', '--signing', '-q'])).code, 0);
    const half = readFileSync(join(path, '.keys/signing-public.json'), 'utf8');
    renameSync(join(path, '.keys/signing-public.json'), join(path, '.keys', leftover(dead, 'signing-public.json')));
    const { code, stderr } = await mcp(path, ['rotate', '-q']);
    assert.equal(code, 0);
    assert.match(stderr, /^warning: destroyed .*\nwarning: wrote \.keys\/signing-public\.json again, which /);
    assert.equal(readFileSync(join(path, '.keys/signing-public.json'), 'utf8'), half);
  });

  test('do not lead to other files', async (t) => {
    const path = folder(t, keys);
    writeFileSync(join(path, 'precious'), 'precious');
    symlinkSync('../precious', join(path, '.keys', leftover(dead)));
    for (const name of ['mcp-private.json.mcp-auth-1-0123456789AB.tmp', 'x.tmp', 'notes.123.0123456789ab.tmp'])
      writeFileSync(join(path, '.keys', name), 'content');
    const { code, stdout, stderr } = await mcp(path, ['clean', '--stale']);
    assert.deepEqual([code, stdout], [1, '']);
    assert.match(stderr, /^error: \S+ is a symbolic link and is not followed; .*\n$/);
    assert.equal(readFileSync(join(path, 'precious'), 'utf8'), 'precious');
    assert.equal(readdirSync(join(path, '.keys')).length, 6);
  });
});

describe('a file system', { skip: without('strace') }, () => {
  const refusing = (call: string, error: string): string[] => [
    'strace',
    '-f',
    '-qq',
    '-o',
    '/dev/null',
    '-e',
    `inject=${call}:error=${error}`,
  ];
  for (const error of ['EPERM', 'EOPNOTSUPP', 'ENOSYS', 'EACCES', 'EISDIR', 'EIO']) {
    test(`without hard links (${error}) works, and its limits are said`, async (t) => {
      const path = folder(t);
      const under = refusing('?link,?linkat', error);
      for (const args of [make, [...make, '-f'], ['rotate', '-q']]) {
        const before = existsSync(join(path, '.keys')) ? contents(join(path, '.keys'))['mcp-private.json'] : undefined;
        const { code, stderr } = await mcpUnder(path, under, args);
        assert.equal(code, 0, stderr);
        assert.match(stderr, /^warning: the file system of \S+ knows no hard links: /);
        const files = contents(join(path, '.keys'));
        assert.deepEqual(Object.keys(files), names);
        assert.notEqual(files['mcp-private.json'], before);
        const set = JSON.parse(files['mcp-private.json'] ?? '');
        assert.equal(JSON.parse(files['mcp-public.json'] ?? '').keys[0].kid, publicJwks(set).keys[0]?.kid);
      }
    });
  }

  test('without modes is warned about', { skip: without('mount') }, async (t) => {
    const path = folder(t);
    mkdirSync(join(path, 'image'));
    // A preload in the place of a FAT disk: what counts is the mode that a new file has.
    preload(
      path,
      `const { openSync } = fs;
       fs.openSync = (path, flags, mode) => {
         const fd = openSync(path, flags, mode);
         if (flags === 'wx') fs.chmodSync(path, 0o755);
         return fd;
       };`,
    );
    const { code, stderr } = await loaded(path, make);
    assert.equal(code, 0);
    assert.equal(
      stderr,
      'warning: the file system of .keys/mcp-private.json keeps no permissions: others may read what is in it\n',
    );
  });

  test('that is read-only is named before a key is made', async (t) => {
    for (const under of [refusing('mkdir', 'EROFS'), refusing('?openat,?open', 'EROFS')].slice(0, 1)) {
      const { code, stderr } = await mcpUnder(folder(t), under, ['generate']);
      assert.deepEqual([code, stderr], [1, 'error: cannot make the folder .keys: read-only file system\n']);
    }
  });
});

describe('a name', () => {
  for (const [name, line] of [
    ["it's keys", `"it's keys/mcp-private.json"`],
    ['say "hi"', `'say "hi"/mcp-private.json'`],
    ['cost $HOME', `'cost $HOME/mcp-private.json'`],
    ['back\\nslash', `'back\\nslash/mcp-private.json'`],
    ['naïve', `"naïve/mcp-private.json"`],
    ['#hash', `"#hash/mcp-private.json"`],
    [`both ' and "`, `\`both ' and "/mcp-private.json\``],
  ] as const) {
    test(`${name} makes lines that Node and git read`, { skip: without('git') }, async (t) => {
      const path = folder(t);
      const { code, stderr } = await mcp(path, ['generate', '--bits', '2048', '-o', name]);
      assert.equal(code, 0, stderr);
      const [, shown = '', , ignore = ''] = stderr.split('\n').map((text) => text.trim());
      assert.equal(shown, `MCP_KEY_FILE_PATH=${line}`);
      writeFileSync(join(path, '.env'), `${shown}\n`);
      const print = ['--env-file=.env', '-p', 'process.env.MCP_KEY_FILE_PATH'];
      assert.equal((await run(process.execPath, print, { cwd: path })).stdout, `${name}/mcp-private.json\n`);
      writeFileSync(join(path, '.gitignore'), `${ignore}\n`);
      spawnSync('git', ['init', '-q'], { cwd: path });
      for (const file of [...names, `${names[0]}.mcp-auth-1-0123456789ab.tmp`])
        assert.equal(spawnSync('git', ['check-ignore', '-q', `${name}/${file}`], { cwd: path }).status, 0, ignore);
    });
  }

  test('of no folder of its own makes lines that cover temporary files', { skip: without('git') }, async (t) => {
    const path = folder(t);
    for (const args of [
      ['-o', '.'],
      ['-o', '.', '--signing'],
    ]) {
      const { stderr } = await mcp(path, ['generate', ...(args.length > 2 ? [] : ['--bits', '2048']), ...args]);
      const lines = stderr.split('For .gitignore:\n')[1]?.split('Key id')[0] ?? '';
      writeFileSync(join(path, '.gitignore'), lines.replaceAll('  ', ''), { flag: 'a' });
    }
    spawnSync('git', ['init', '-q'], { cwd: path });
    const files = readdirSync(path).filter((name) => name.endsWith('.json'));
    assert.equal(files.length, 4);
    for (const file of files.flatMap((name) => [name, `${name}.mcp-auth-1-0123456789ab.tmp`]))
      assert.equal(spawnSync('git', ['check-ignore', '-q', file], { cwd: path }).status, 0, file);
  });

  for (const [what, name] of [
    ['octets that are no UTF-8', Buffer.from([0x6b, 0xff])],
    ['a control character', Buffer.from('k\r')],
    ['an escape sequence', Buffer.from('k\x1b[31m')],
    ['an escape sequence of one octet in C1', Buffer.from('k\x9b31m')],
    ['what turns the direction of letters', Buffer.from('k\u202e')],
  ] as const) {
    test(`with ${what} is refused by every command, and printed safely`, async (t) => {
      const path = folder(t);
      mkdirSync(Buffer.concat([Buffer.from(`${path}/`), name]));
      const word = `"$(printf '${[...name].map((octet) => `\\${octet.toString(8).padStart(3, '0')}`).join('')}.')"`;
      for (const command of ['generate', 'clean', 'rotate', 'inspect', 'k8s', 'public', 'token']) {
        // A shell gives the octets as they are; its `$(…)` would drop a last line break, so that a point follows.
        const { code, stdout, stderr } = await mcpUnder(
          path,
          ['sh', '-c', `name=${word}; exec "$@" -o "\${name%.}"`, 'sh'],
          [command],
        );
        assert.deepEqual([code, stdout], [1, ''], command);
        assert.match(stderr, /^error: -o has (octets that are no UTF-8|a control character): [^\x00-\x1f\x7f]+\n$/);
      }
      assert.equal(readdirSync(path).length, 1);
    });
  }

  test('of a key is printed safely', async (t) => {
    const path = folder(t, keys);
    const set = JSON.parse(readFileSync(join(keys, 'mcp-private.json'), 'utf8'));
    set.keys[0].kid = 'evil\x1b[2J\n\u202e';
    writeFileSync(join(path, '.keys/mcp-private.json'), JSON.stringify(set));
    for (const args of [['inspect'], ['public'], ['public', '--all'], ['rotate'], ['inspect', '--json']]) {
      const { code, stdout, stderr } = await mcp(path, args);
      assert.equal(code, 0);
      assert.doesNotMatch(stdout + stderr, /[\x00-\x09\x0b-\x1f\x7f-\x9f\u061c\u202e]|evil\n/);
      if (args[0] === 'public') assert.equal(JSON.parse(stdout).keys[0].kid, set.keys[0].kid);
    }
  });

  test('of a leftover is printed safely', async (t) => {
    const path = folder(t, keys);
    writeFileSync(join(path, '.keys', '\x1b]0;evil\x07\x9b31m.mcp-auth-99999999-aaaaaaaaaaaa.tmp'), 'x');
    const { code, stdout, stderr } = await mcp(path, ['clean', '--stale']);
    assert.equal(code, 0, stderr);
    assert.match(stdout, /^Removed:\n {2}\.keys\/\\u001b\]0;evil/);
    assert.doesNotMatch(stdout + stderr, /[\x00-\x09\x0b-\x1f\x7f-\x9f]/);
  });

  test('of a folder may have the joiners that some languages write with', async (t) => {
    const path = folder(t);
    for (const name of ['\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645', '\u{1f469}\u200d\u{1f52c}']) {
      const { code, stderr } = await mcp(path, [...make, '-o', name]);
      assert.equal(code, 0, stderr);
      assert.deepEqual(readdirSync(join(path, name)).sort(), names);
    }
  });
});

describe('a run that finds what another one has left', () => {
  test('does not say after a signal that nothing was changed', async (t) => {
    const path = folder(t, keys);
    writeFileSync(join(path, '.keys/mcp-private.json.mcp-auth-99999999-aaaaaaaaaaaa.tmp'), 'x');
    const child = spawn(process.execPath, [cli, 'rotate', '--bits', '4096'], { cwd: path });
    const lines: string[] = [];
    child.stderr.on('data', (chunk) => lines.push(String(chunk)));
    await until(() => lines.join('').includes('destroyed .keys/'));
    child.kill('SIGINT');
    const [code] = await once(child, 'close');
    assert.equal(code, 130);
    assert.match(lines.join(''), /\nerror: interrupted by SIGINT; (nothing else was changed|the new key is in .*)\n$/);
  });

  test('prints a set also where it may not look for that', async (t) => {
    const path = folder(t, keys);
    writeFileSync(join(path, 'file'), 'no folder');
    const { code, stdout, stderr } = await mcp(path, ['k8s', '--ephemeral', '--bits', '2048', '-o', 'file']);
    assert.equal(code, 0, stderr);
    assert.match(stdout, /^apiVersion: v1\n/);
    assert.match(stderr, /^warning: .*file/m);
  });
});

describe('what is not taken says what to do', () => {
  const TABLE: [args: string[], message: RegExp][] = [
    [['rotate', '.keys'], /^error: \.keys is a folder; name it with -o\n$/],
    [['generate', '-o=~/keys'], /^error: -o begins with ~, which no shell has replaced: write "\$HOME" instead\n$/],
    [['inspect', 'key.pem'], /^error: key\.pem is PEM; keys are taken as JWK\n$/],
  ];
  for (const [args, message] of TABLE) {
    test(args.join(' '), async (t) => {
      const path = folder(t, keys);
      writeFileSync(join(path, 'key.pem'), '-----BEGIN PRIVATE KEY-----\n');
      const { code, stderr } = await mcp(path, args);
      assert.equal(code, 1);
      assert.match(stderr, message);
    });
  }

  test('a path that a file with line ends of Windows has set', async (t) => {
    const env = { ...process.env, MCP_KEY_FILE_PATH: '.keys/mcp-private.json\r' };
    const { code, stderr } = await run(process.execPath, [cli, 'inspect'], { cwd: folder(t, keys), env });
    assert.equal(code, 1);
    assert.match(stderr, /^error: MCP_KEY_FILE_PATH ends with a carriage return: save the file that sets it with Unix/);
  });

  test('a URL that is not the one of the keys', async (t) => {
    const { url } = await serve(t, (_, res) => res.writeHead(401).end());
    const { code, stderr } = await mcp(folder(t), ['token', '--url', url]);
    assert.equal(code, 1);
    assert.match(stderr, /answered 401 instead of 200; servers publish their keys at \/\.well-known\/jwks\.json\n$/);
  });
});

describe('a folder', () => {
  test('whose own name is no UTF-8 gets keys below it, and nothing beside it', async (t) => {
    const path = folder(t);
    const shell = ['sh', '-c', `name=$(printf 'n\\377'); mkdir -p "$name" && cd "$name" && exec "$@"`, 'sh'];
    for (const [args, at] of [
      [make, '.keys'],
      [[...make, '-o', 'a/b'], 'a/b'],
    ] as const) {
      const [privateFile, publicFile] = names.map((name) => `${at}/${name}`);
      const stdout = `Keys generated (JWKS format):\n  Private: ${privateFile}\n  Public:  ${publicFile}\n`;
      assert.deepEqual(await mcpUnder(path, shell, [...args]), { code: 0, signal: null, stdout, stderr: '' });
    }
    assert.equal(readdirSync(path).length, 1);
  });

  test('and keys get their modes whatever the umask', { skip: without('setpriv') }, async (t) => {
    for (const umask of ['0777', '0277', '077']) {
      const path = folder(t);
      const { code, stderr } = await mcpUnder(path, [...bound, 'sh', '-c', `umask ${umask}; exec "$@"`, 'sh'], make);
      assert.equal(code, 0, stderr);
      const modes = ['.keys', '.keys/mcp-private.json'].map((name) => mode(join(path, name)));
      assert.deepEqual(modes, ['0700', '0600'], umask);
    }
  });

  test('of somebody else is warned about', { skip: process.getuid?.() === 0 ? false : 'needs root' }, async (t) => {
    const path = folder(t);
    mkdirSync(join(path, '.keys'), { mode: 0o700 });
    chownSync(join(path, '.keys'), 12_345, 12_345);
    const { code, stderr } = await mcp(path, make);
    assert.equal(code, 0);
    assert.match((await mcp(path, ['rotate', '-q'])).stderr, /^warning: \.keys belongs to another user/);
    assert.match(stderr, /^warning: \.keys belongs to another user \(12345\), who can put another key in the place/);
  });
});

describe('the end', () => {
  test('comes at once after an error, whatever a server holds open', async (t) => {
    const { url } = await serve(t, (_, res) => res.writeHead(500).write('busy'));
    const child = spawn(process.execPath, [cli, 'token', '--url', url], { stdio: ['pipe', 'ignore', 'pipe'] });
    t.after(() => child.kill('SIGKILL'));
    let said = 0;
    child.stderr.once('data', () => (said = Date.now()));
    await once(child, 'exit');
    assert.ok(said > 0 && Date.now() - said < 2000, `${Date.now() - said} ms`);
  });

  test('is an error when standard output is closed and the result would be lost', async (t) => {
    const path = folder(t, keys);
    for (const args of [
      ['k8s', '--ephemeral', '--bits', '2048'],
      ['public'],
      ['token'],
      ['inspect'],
      ['-V'],
      ['help'],
    ]) {
      const { code, stderr } = await mcpUnder(path, ['sh', '-c', 'exec "$@" >&-', 'sh'], args);
      assert.equal(code, 1, args.join(' '));
      assert.equal(
        stderr,
        'error: standard output is closed, and the result would be lost; send it to a file or a pipe\n',
      );
    }
    for (const args of [['rotate', '-q'], ['clean']]) {
      const { code, stderr } = await mcpUnder(path, ['sh', '-c', 'exec "$@" >&-', 'sh'], args);
      assert.equal(code, 0, args.join(' '));
      assert.match(stderr, /^warning: standard output is closed, and the result would be lost; /);
    }
  });

  test('of a Secret in a file that others can read is a warning', async (t) => {
    const path = folder(t, keys);
    for (const [umask, warns] of [
      ['022', true],
      ['027', true],
      ['077', false],
    ] as const) {
      const shell = ['sh', '-c', `umask ${umask}; exec "$@" > ${umask}.yaml`, 'sh'];
      const { code, stderr } = await mcpUnder(path, shell, ['k8s', '-q', '--from', '.keys/mcp-private.json']);
      assert.equal(code, 0);
      assert.equal(/^warning: other users can read the file/.test(stderr), warns, umask);
    }
  });
});

test("works under Node's permission model, and names it where it forbids", async (t) => {
  const path = folder(t);
  const flag = process.allowedNodeEnvironmentFlags.has('--permission') ? '--permission' : '--experimental-permission';
  const allowed = [flag, '--allow-fs-read=*', '--no-warnings'];
  const under = (flags: string[], args: string[]) => run(process.execPath, [...flags, cli, ...args], { cwd: path });
  for (const args of [make, [...make, '-f'], ['rotate', '-q'], ['clean']]) {
    const { code, stderr } = await under([...allowed, `--allow-fs-write=${path}`], args);
    assert.equal(code, 0, stderr);
    assert.match(stderr, /^(warning: .*cannot be synced.*\n)*$/);
  }
  assert.deepEqual(readdirSync(path), ['.keys']);
  const denied = await under(allowed, make);
  assert.equal(denied.code, 1);
  assert.match(
    denied.stderr,
    /^error: cannot .*: Node's permission model denies it; allow it with --allow-fs-read and/,
  );
});

test('the built file runs in a CommonJS project, and has no import for an old Node to stumble over', async (t) => {
  const path = folder(t);
  copyFileSync(cli, join(path, 'cli.js'));
  writeFileSync(join(path, 'package.json'), '{ "type": "commonjs" }');
  const { code, stdout } = await run(process.execPath, ['cli.js', '-V'], { cwd: path });
  assert.deepEqual([code, stdout], [0, `${JSON.parse(readFileSync(join(root, 'package.json'), 'utf8')).version}\n`]);
  const text = readFileSync(cli, 'utf8');
  assert.doesNotMatch(text, /^import /m);
  const old = text.replace('process.versions.node.split', '"18.20.8".split');
  writeFileSync(join(path, 'cli.js'), old);
  const refused = await run(process.execPath, ['cli.js', 'generate'], { cwd: path });
  assert.equal(refused.code, 1);
  assert.match(refused.stderr, /^error: mcp-auth-middleware needs Node 20\.19, 22\.3 or later, and this is v\S+\n$/);
});
