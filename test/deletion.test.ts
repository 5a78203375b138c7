// What `clean`, and `generate -f` with the old keys, really do to the disk. A second name of a file (a hard link), made
// before, shows what became of its content.
import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import {
  chmodSync,
  copyFileSync,
  existsSync,
  linkSync,
  lstatSync,
  mkdirSync,
  readFileSync,
  readdirSync,
  readlinkSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs';
import { createServer } from 'node:net';
import { join } from 'node:path';
import { after, before, describe, test } from 'node:test';
import { bound, cli, contents, folder, mcp, mcpUnder, without } from './support/command.js';
import { run, type Scope } from './support/support.js';

const home = folder({ after });
const keys = join(home, '.keys');
before(async () => {
  for (const args of [
    ['generate', '--bits', '2048'],
    ['generate', '--signing'],
  ]) {
    const { code, stderr } = await mcp(home, args);
    assert.equal(code, 0, stderr);
  }
});

const names = ['mcp-private.json', 'mcp-public.json'];
const removed = 'Removed:\n  .keys/mcp-private.json\n  .keys/mcp-public.json\n';

/** A folder with the encryption pair alone. */
function pair(t: Scope): string {
  const path = folder(t);
  mkdirSync(join(path, '.keys'), { mode: 0o700 });
  for (const name of names) copyFileSync(join(keys, name), join(path, '.keys', name));
  return path;
}

/** A PATH whose `shred` is this: a program that exists, a script, or none at all. */
function shred(t: Scope, is: { link?: string; script?: string }): { PATH: string } {
  const path = folder(t);
  if (is.link !== undefined) symlinkSync(is.link, join(path, 'shred'));
  if (is.script !== undefined) writeFileSync(join(path, 'shred'), `#!/bin/sh\n${is.script}\n`, { mode: 0o755 });
  return { PATH: path };
}
const where = (tool: string): string =>
  execFileSync('sh', ['-c', 'command -v "$0"', tool], { encoding: 'utf8' }).trim();
const isZero = (path: string): boolean => readFileSync(path).every((octet) => octet === 0);

const tools: { name: string; needs?: string; shred: () => { link?: string; script?: string } }[] = [
  { name: 'shred of GNU', needs: 'shred', shred: () => ({ link: where('shred') }) },
  { name: 'shred of BusyBox', needs: 'busybox', shred: () => ({ link: where('busybox') }) },
  { name: 'no shred', shred: () => ({}) },
  { name: 'a shred that fails', shred: () => ({ script: 'exit 1' }) },
  { name: 'a shred that claims success and does nothing', shred: () => ({ script: 'exit 0' }) },
  { name: 'a shred that truncates', shred: () => ({ script: ': >/dev/fd/3' }) },
  { name: 'a shred that is killed half-way', shred: () => ({ script: 'echo >/dev/fd/3; kill -9 $$' }) },
];
for (const tool of tools) {
  describe(`with ${tool.name}`, { skip: tool.needs ? without(tool.needs) : false }, () => {
    test('clean overwrites both files, then removes them', async (t) => {
      const path = pair(t);
      for (const name of names) linkSync(join(path, '.keys', name), join(path, name));
      const { code, stdout, stderr } = await mcp(path, ['clean'], { env: shred(t, tool.shred()) });
      assert.deepEqual(
        { code, stdout, left: readdirSync(join(path, '.keys')) },
        { code: 0, stdout: removed, left: [] },
      );
      assert.equal(
        stderr,
        [...names]
          .reverse() // the public key goes first
          .map((name) => `warning: .keys/${name} has other names (hard links); what they name is overwritten too\n`)
          .join(''),
      );
      for (const name of names) assert.ok(isZero(join(path, name)) && lstatSync(join(path, name)).nlink === 1, name);
    });

    test('generate -f overwrites the old private key', async (t) => {
      const path = pair(t);
      linkSync(join(path, '.keys/mcp-private.json'), join(path, 'old'));
      const { code } = await mcp(path, ['generate', '-f', '--bits', '2048'], { env: shred(t, tool.shred()) });
      assert.deepEqual([code, isZero(join(path, 'old')), readdirSync(join(path, '.keys'))], [0, true, names]);
      assert.ok(!isZero(join(path, '.keys/mcp-private.json')));
    });
  });
}

test(
  'GNU and BusyBox shred are really used, on the open file and not on a name',
  { skip: without('strace', 'shred', 'busybox') },
  async (t) => {
    for (const link of ['shred', 'busybox']) {
      const path = pair(t);
      const trace = join(path, 'trace');
      const under = [where('strace'), '-f', '-qq', '-y', '-o', trace, '-e', 'trace=execve,write,?sendfile,?sendfile64'];
      const { code, stderr } = await mcpUnder(path, under, ['clean'], { env: shred(t, { link: where(link) }) });
      assert.equal(code, 0, stderr);
      const calls = readFileSync(trace, 'utf8');
      assert.equal(calls.match(/execve\("[^"]*shred", \["shred", "-z", "\/dev\/fd\/3"\], .* = 0$/gm)?.length, 2);
      assert.match(calls, /(write|sendfile|sendfile64)\(\d+<[^>]*\/\.keys\/mcp-private\.json\.mcp-auth-[^>]*>/);
    }
  },
);

test(
  'without shred the name goes first, then the content is overwritten and synced, then the file is removed',
  { skip: without('strace') },
  async (t) => {
    const path = pair(t);
    const trace = join(path, 'trace');
    const under = [
      where('strace'),
      '-qq',
      '-y',
      '-o',
      trace,
      '-e',
      'trace=pwrite64,?rename,?renameat,?renameat2,?unlink,?unlinkat,fsync,?open,openat',
    ];
    const { code, stderr } = await mcpUnder(path, under, ['clean'], { env: shred(t, {}) });
    assert.equal(code, 0, stderr);
    const { size } = lstatSync(join(keys, 'mcp-private.json'));
    const calls = readFileSync(trace, 'utf8')
      .split('\n')
      .filter((call) => call.includes('mcp-private.json'))
      .map((call) => call.replace(/ +=/, ' ='));
    const file = `<[^>]*/\\.keys/mcp-private\\.json\\.mcp-auth-[^>]*>`;
    const expected = [
      /^open.*mcp-private\.json\.mcp-auth-.*O_EXCL/, // the claim that keeps other runs away
      /^open.*O_RDWR.*O_NOFOLLOW/,
      /^rename.*mcp-private\.json", .*mcp-private\.json\.mcp-auth-\d+-[0-9a-f]{12}\.tmp"\) = 0$/,
      new RegExp(`^pwrite64\\(\\d+${file}, .*, ${size}, 0\\) = ${size}$`),
      new RegExp(`^fsync\\(\\d+${file}\\) = 0$`),
      new RegExp(`^pwrite64\\(\\d+${file}, "(\\\\0)+"\\.\\.\\., ${size}, 0\\) = ${size}$`),
      new RegExp(`^fsync\\(\\d+${file}\\) = 0$`),
      new RegExp(`^fsync\\(\\d+${file}\\) = 0$`),
      /^unlink.*mcp-private\.json\.mcp-auth-\d+-[0-9a-f]{12}\.tmp"(, 0)?\) = 0$/,
      /^unlink.*mcp-private\.json\.mcp-auth-\d+-[0-9a-f]{12}\.tmp"(, 0)?\) = 0$/, // the claim
    ];
    assert.equal(calls.length, expected.length, calls.join('\n'));
    for (const [at, pattern] of expected.entries()) assert.match(calls[at] ?? '', pattern);
    assert.match(readFileSync(trace, 'utf8'), /unlink[^]*fsync\(\d+<[^>]*\/\.keys>\) += 0\n/);
  },
);

describe('clean', () => {
  test('has nothing to do where there are no keys', async (t) => {
    const path = folder(t);
    mkdirSync(join(path, 'empty'));
    for (const name of ['.keys', 'empty', 'a/b']) {
      const done = await mcp(path, ['clean', '-o', name]);
      assert.deepEqual(done, { code: 0, signal: null, stdout: `No keys found in ${name}\n`, stderr: '' });
    }
    assert.deepEqual(readdirSync(path), ['empty']);
  });

  test('removes what is there of a pair, and what a killed run has left, and nothing else', async (t) => {
    const path = pair(t);
    const others = [
      'mcp-private.json.bak',
      'mcp-private.json.tmp',
      'mcp-private.json.0123456789AB.tmp',
      'other.json',
      'xmcp-private.json',
    ];
    const left = ['mcp-private.json.0123456789ab.tmp', 'mcp-public.json.fedcba987654.tmp'];
    for (const name of [...others, ...left]) writeFileSync(join(path, '.keys', name), 'content');
    const { code, stdout, stderr } = await mcp(path, ['clean']);
    const list = ['mcp-private.json', left[0], 'mcp-public.json', left[1]].map((name) => `  .keys/${name}\n`).join('');
    assert.deepEqual({ code, stdout, stderr }, { code: 0, stdout: `Removed:\n${list}`, stderr: '' });
    assert.deepEqual(readdirSync(join(path, '.keys')).sort(), others.sort());
    for (const name of others) assert.equal(readFileSync(join(path, '.keys', name), 'utf8'), 'content');
  });

  test("leaves an issuer's pair, says so, and destroys it with --signing", async (t) => {
    const path = folder(t, keys);
    const first = await mcp(path, ['clean']);
    assert.deepEqual(first, {
      code: 0,
      signal: null,
      stdout: removed,
      stderr: '.keys/signing-private.json is left; clean --signing destroys it\n',
    });
    const second = await mcp(path, ['clean', '-q']);
    assert.deepEqual(second, { code: 0, signal: null, stdout: 'No keys found in .keys\n', stderr: '' });
    const third = await mcp(path, ['clean', '--signing']);
    assert.deepEqual(third, { code: 0, signal: null, stdout: removed.replaceAll('mcp-', 'signing-'), stderr: '' });
    assert.deepEqual(readdirSync(join(path, '.keys')), []);
  });

  test('follows the folder that it is told, even through a link', async (t) => {
    const path = pair(t);
    symlinkSync('.keys', join(path, 'link'));
    const { code, stdout } = await mcp(path, ['clean', '-olink']);
    assert.deepEqual([code, stdout, readdirSync(join(path, '.keys'))], [0, removed.replaceAll('.keys', 'link'), []]);
    assert.ok(lstatSync(join(path, 'link')).isSymbolicLink());
  });

  test('touches neither a symbolic link nor what it leads to', async (t) => {
    const path = pair(t);
    const link = join(path, '.keys/mcp-private.json');
    execFileSync('mv', [link, join(path, 'precious')]);
    symlinkSync('../precious', link);
    const { code, stdout, stderr } = await mcp(path, ['clean']);
    assert.deepEqual({ code, stdout }, { code: 1, stdout: 'Removed:\n  .keys/mcp-public.json\n' });
    assert.match(stderr, /^error: \.keys\/mcp-private\.json is a symbolic link and is not followed; .+\n$/);
    assert.equal(readlinkSync(link), '../precious');
    assert.equal(readFileSync(join(path, 'precious'), 'utf8'), readFileSync(join(keys, 'mcp-private.json'), 'utf8'));
  });

  test('does not wait for or open what is no file', { skip: without('mkfifo') }, async (t) => {
    const make: Record<string, (path: string) => unknown> = {
      FIFO: (path) => execFileSync('mkfifo', [path]),
      directory: (path) => mkdirSync(join(path, 'inside'), { recursive: true }),
      socket: (path) => {
        const server = createServer().listen(path);
        t.after(() => server.close());
        return new Promise((resolve) => server.once('listening', resolve));
      },
    };
    for (const [what, put] of Object.entries(make)) {
      const path = folder(t);
      mkdirSync(join(path, '.keys'));
      await put(join(path, '.keys/mcp-private.json'));
      const { code, stdout, stderr } = await mcp(path, ['clean'], { timeout: 20_000 });
      assert.deepEqual({ code, stdout }, { code: 1, stdout: '' }, what);
      assert.equal(stderr, 'error: .keys/mcp-private.json is not a regular file; remove it yourself\n');
      assert.ok(existsSync(join(path, '.keys/mcp-private.json')));
    }
  });

  test('is not led astray when the name is swapped for a link while shred runs', async (t) => {
    const path = pair(t);
    const precious = join(path, 'precious');
    writeFileSync(precious, 'precious');
    linkSync(join(path, '.keys/mcp-private.json'), join(path, 'old'));
    const swap = 'ls mcp-private.json.*.tmp >/dev/null && ln -s ../precious mcp-private.json';
    const script = `PATH=${JSON.stringify(process.env.PATH)}; cd '${path}/.keys' && ${swap}`;
    const { code, stdout, stderr } = await mcp(path, ['clean'], { env: shred(t, { script }) });
    assert.deepEqual({ code, stdout }, { code: 1, stdout: 'Removed:\n  .keys/mcp-public.json\n' });
    assert.match(stderr, /error: \.keys\/mcp-private\.json was replaced meanwhile; run clean again\n/);
    assert.equal(readFileSync(precious, 'utf8'), 'precious');
    assert.equal(readlinkSync(join(path, '.keys/mcp-private.json')), '../precious');
    assert.ok(isZero(join(path, 'old')));
  });

  const unwritable: [name: string, mode: { file?: number; folder?: number }, overwritten: boolean, message: string][] =
    [
      [
        'a read-only file is left',
        { file: 0o400 },
        false,
        'cannot overwrite .keys/mcp-private.json, which is left as it is: permission denied; allow it with chmod u+rw',
      ],
      [
        'an unreadable file is left',
        { file: 0o000 },
        false,
        'cannot overwrite .keys/mcp-private.json, which is left as it is: permission denied; allow it with chmod u+rw',
      ],
      [
        'a file in a read-only folder is overwritten',
        { folder: 0o500 },
        true,
        'cannot remove .keys/mcp-private.json, though it is overwritten: permission denied',
      ],
    ];
  for (const [name, modes, overwritten, message] of unwritable) {
    test(`says that ${name}`, { skip: without('setpriv') }, async (t) => {
      const path = pair(t);
      const file = join(path, '.keys/mcp-private.json');
      execFileSync('rm', [join(path, '.keys/mcp-public.json')]);
      if (modes.file !== undefined) chmodSync(file, modes.file);
      if (modes.folder !== undefined) chmodSync(join(path, '.keys'), modes.folder);
      const { code, stdout, stderr } = await mcpUnder(path, bound, ['clean']);
      chmodSync(join(path, '.keys'), 0o700);
      assert.deepEqual({ code, stdout, stderr }, { code: 1, stdout: '', stderr: `error: ${message}\n` });
      chmodSync(file, 0o600);
      assert.equal(isZero(file), overwritten);
      if (!overwritten) assert.equal(readFileSync(file, 'utf8'), readFileSync(join(keys, 'mcp-private.json'), 'utf8'));
    });
  }

  for (const [error, words] of [
    ['EIO', 'i/o error'],
    ['ENOSPC', 'no space left on device'],
  ] as const) {
    test(
      `says that a file is left when writing fails with ${error}, and goes on with the next`,
      { skip: without('strace') },
      async (t) => {
        const path = pair(t);
        const third = `inject=pwrite64:error=${error}:when=3`; // of the second file
        const under = [where('strace'), '-qq', '-o', '/dev/null', '-e', third];
        const { code, stdout, stderr } = await mcpUnder(path, under, ['clean'], { env: shred(t, {}) });
        assert.deepEqual({ code, stdout }, { code: 1, stdout: 'Removed:\n  .keys/mcp-public.json\n' });
        assert.equal(stderr, `error: cannot overwrite .keys/mcp-private.json, which is left where it is: ${words}\n`);
        assert.deepEqual(readdirSync(join(path, '.keys')), ['mcp-private.json']);
      },
    );
  }

  test('fails on a folder that is none', async (t) => {
    const path = folder(t);
    writeFileSync(join(path, '.keys'), '');
    const done = await mcp(path, ['clean']);
    assert.deepEqual(done, {
      code: 1,
      signal: null,
      stdout: '',
      stderr: 'error: cannot read the folder .keys: not a directory\n',
    });
  });
});

describe('generate -f', () => {
  test(
    'refuses before it changes anything when the old private key could not be destroyed',
    { skip: without('setpriv') },
    async (t) => {
      const path = pair(t);
      const before = contents(path);
      chmodSync(join(path, '.keys/mcp-private.json'), 0o400);
      const { code, stdout, stderr } = await mcpUnder(path, bound, ['generate', '-f', '--bits', '2048']);
      assert.deepEqual(
        { code, stdout, stderr },
        {
          code: 1,
          stdout: '',
          stderr: 'error: cannot replace .keys/mcp-private.json: permission denied; allow it with chmod u+rw\n',
        },
      );
      assert.deepEqual(contents(path), before);
    },
  );

  test(
    'says where the old private key still is when it cannot be overwritten after all',
    { skip: without('strace') },
    async (t) => {
      const path = pair(t);
      const under = [where('strace'), '-qq', '-o', '/dev/null', '-e', 'inject=pwrite64:error=EIO:when=1'];
      const { code, stderr } = await mcpUnder(path, under, ['generate', '-f', '--bits', '2048'], { env: shred(t, {}) });
      assert.equal(code, 1);
      const [, name = ''] =
        /cannot overwrite \.keys\/(mcp-private\.json\.mcp-auth-\d+-\w{12}\.tmp), which is left .*: i\/o error/.exec(
          stderr,
        ) ?? [];
      assert.match(stderr, /new keys are in place/);
      assert.equal(
        readFileSync(join(path, '.keys', name), 'utf8'),
        readFileSync(join(keys, 'mcp-private.json'), 'utf8'),
      );
      const cleaned = await mcp(path, ['clean']);
      assert.deepEqual([cleaned.code, readdirSync(join(path, '.keys'))], [0, []]);
    },
  );
});

// A file system that is full for everybody: no test for one user's quota shows that overwriting in place needs no
// space.
const asRoot = process.getuid?.() === 0 ? [] : ['sudo', '-n'];
test(
  'destroys keys on a full disk',
  { skip: asRoot.length > 0 && !process.env.CI ? 'needs root to mount a file system' : without('mount') },
  async (t) => {
    const path = pair(t);
    const disk = join(path, 'disk');
    mkdirSync(disk);
    const mounted = await run('env', [
      ...asRoot,
      'mount',
      '-t',
      'tmpfs',
      '-o',
      `size=16k,uid=${process.getuid?.()}`,
      'none',
      disk,
    ]);
    if (mounted.code !== 0 && !process.env.CI) return t.skip(`this root may not mount: ${mounted.stderr.trim()}`);
    assert.equal(mounted.code, 0, mounted.stderr);
    try {
      for (const name of names) copyFileSync(join(keys, name), join(disk, name));
      assert.throws(() => writeFileSync(join(disk, 'full'), Buffer.alloc(64 * 1024)), { code: 'ENOSPC' });
      const refused = await mcp(path, ['generate', '-f', '--bits', '2048', '-o', 'disk']);
      assert.deepEqual(
        [refused.code, refused.stderr],
        [1, 'error: cannot write to disk: no space left on device; nothing was changed\n'],
      );
      assert.deepEqual(readdirSync(disk).sort(), ['full', ...names]);
      for (const name of names)
        assert.equal(readFileSync(join(disk, name), 'utf8'), readFileSync(join(keys, name), 'utf8'));
      for (const env of [shred(t, {}), {}]) {
        for (const name of names) if (!existsSync(join(disk, name))) copyFileSync(join(keys, name), join(disk, name));
        const { code, stdout } = await run(process.execPath, [cli, 'clean', '-o', disk], { env });
        assert.deepEqual([code, stdout], [0, `Removed:\n  ${disk}/mcp-private.json\n  ${disk}/mcp-public.json\n`]);
      }
    } finally {
      execFileSync('env', [...asRoot, 'umount', disk]);
    }
  },
);
