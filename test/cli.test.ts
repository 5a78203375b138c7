// The command as its user sees it: arguments, streams, exit codes, files and their modes.
import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import {
  chmodSync,
  copyFileSync,
  existsSync,
  mkdirSync,
  readFileSync,
  readdirSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs';
import { join } from 'node:path';
import { after, before, describe, test } from 'node:test';
import { compactVerify, decodeProtectedHeader, importJWK } from 'jose';
import { compactDecrypt, jwkThumbprint, publicJwks, type JwkSet } from 'mcp-auth-middleware';
import { parse } from 'yaml';
import { bound, cli, contents, folder, mcp, mcpUnder, mode, without } from './support/command.js';
import { root, run, serve } from './support/support.js';

// One 2048-bit pair, which tests copy: making keys is what takes the time.
const home = folder({ after });
const keys = join(home, '.keys');
let privateSet: JwkSet;
let publicSet: JwkSet;
before(async () => {
  const made = await mcp(home, ['generate', '--bits', '2048']);
  assert.equal(made.code, 0, made.stderr);
  privateSet = JSON.parse(readFileSync(join(keys, 'mcp-private.json'), 'utf8'));
  publicSet = JSON.parse(readFileSync(join(keys, 'mcp-public.json'), 'utf8'));
});

const privateMembers = /"(d|p|q|dp|dq|qi|oth|k)"/;
const generated =
  'Keys generated (JWKS format):\n  Private: .keys/mcp-private.json\n  Public:  .keys/mcp-public.json\n';

describe('arguments', { concurrency: 2 }, () => {
  const wrong: [args: string[], message: RegExp][] = [
    [[], /^error: no command\n/],
    [['frobnicate'], /^error: unknown command 'frobnicate'\n/],
    [['toString'], /^error: unknown command 'toString'\n/],
    [['rotat'], /^error: unknown command 'rotat'; did you mean rotate\?\n/],
    [['gernerate'], /^error: unknown command 'gernerate'; did you mean generate\?\n/],
    [['\x1b[2J'], /^error: unknown command '\\u001b\[2J'\n/],
    [['generate', '--froce'], /^error: unknown option --froce; did you mean --force\?\n/],
    [['help', 'generat'], /^error: unknown command 'generat'; did you mean generate\?\n/],
    [['completion', 'tcsh'], /^error: the shell is one of bash, zsh, fish, not 'tcsh'\n/],
    [['rotate', '--grace', '1'], /^error: --grace is a duration/],
    [['verify', '--issuer', 'x'], /^error: --issuer, --jwks and --audience go together/],
    [['verify', 'a.b.c.d.e'], /^error: a token does not belong on the command line/],
    [['verify', '--key', '-'], /^error: only one file can be standard input\n/],
    [['k8s', '--from', 'x', '--bits', '2048'], /^error: --alg and --bits are for new keys/],
    [['-o', 'x', 'generate'], /^error: the command comes before its options\n/],
    [['generate', '--frobnicate'], /^error: unknown option --frobnicate\n/],
    [['generate', '-x'], /^error: unknown option -x\n/],
    [['generate', '-fx'], /^error: unknown option -x\n/],
    [['generate', '--n=x'], /^error: unknown option --n\n/],
    [['generate', '-n', 'x'], /^error: unknown option -n\n/],
    [['generate', 'here'], /^error: unexpected argument 'here'\n/],
    [['generate', '--', '-f'], /^error: unexpected argument '-f'\n/],
    [['generate', '-o'], /^error: -o needs a value\n/],
    [['generate', '-o', ''], /^error: -o needs a value\n/],
    [['generate', '--output='], /^error: --output needs a value\n/],
    [['generate', '-o', '-f'], /^error: -o needs a value\n/],
    [['generate', '-o', 'a', '-ob'], /^error: -o is given twice\n/],
    [['generate', '-f', '--force'], /^error: --force is given twice\n/],
    [['generate', '--force=yes'], /^error: --force takes no value\n/],
    [['generate', '-f=1'], /^error: -f takes no value\n/],
    [['generate', '-f-'], /^error: -f takes no value\n/],
    [['generate', '--bits', '1024'], /^error: --bits is one of 2048, 3072, 4096, not '1024'\n/],
    [['generate', '--bits', '2048.0'], /^error: --bits is one of/],
    [['generate', '--alg', 'RSA1_5'], /^error: --alg is one of RSA-OAEP-256, RSA-OAEP, not 'RSA1_5'\n/],
    [['generate', '--signing', '--alg', 'RSA-OAEP'], /^error: --alg is one of Ed25519, EdDSA, ES256, not 'RSA-OAEP'\n/],
    [['generate', '--signing', '--bits', '2048'], /^error: --bits is for RSA keys/],
    [['k8s', '--from', 'x', '--ephemeral'], /^error: --from .* --ephemeral/],
    [['k8s', '--from', 'x', '-f'], /^error: -f replaces/],
    [['k8s', '--ephemeral', '-f'], /^error: -f replaces/],
    [['public', 'a', 'b'], /^error: unexpected argument 'b'\n/],
    [['token', '--claim', 'x'], /^error: --claim is NAME=VALUE\n/],
    [['token', '--claim', '=x'], /^error: --claim is NAME=VALUE\n/],
    [['token', '--claim', 'a=1', '--claim', 'a=2'], /^error: --claim a is given twice\n/],
    [
      ['token', '--claim', 'exp=1'],
      /^error: --claim gives text and exp is a number: use --claims FILE, or --ttl for exp\n/,
    ],
    [['token', '--ttl', '0s'], /^error: --ttl is more than 0s\n/],
    ...['0', '', '1', '1w', '1.5h', '-1h', '1h30m', ' 1h', '1H', '9999999999s'].map((ttl): [string[], RegExp] => [
      ['token', `--ttl=${ttl}`],
      /^error: --ttl (is a duration|needs a value)/,
    ]),
    [['token', '--key', 'x', '--url', 'https://example.com'], /^error: --key and --url/],
    [['token', '--key', '-', '--claims', '-'], /^error: only one file can be standard input\n/],
    [['token', '--sign', 'x'], /^error: --sign, --issuer and --audience go together\n/],
    [['token', '--issuer', 'x', '--audience', 'x'], /^error: --sign, --issuer and --audience go together\n/],
    ...[
      'http://example.com/',
      'http://localhost.example.com/',
      'http://127.0.0.1.example.com',
      'http://[::2]/',
      'file:///etc/passwd',
      'ftp://localhost/',
      'data:application/json,{}',
    ].map((url): [string[], RegExp] => [
      ['token', '--url', url],
      /^error: --url is https; http is for this machine only\n/,
    ]),
    [['token', '--url', 'nonsense'], /^error: --url 'nonsense' is not a URL\n/],
    [['token', '--url', 'https://me:pw@example.com/'], /^error: --url takes no user and password\n/],
  ];
  for (const [args, message] of wrong) {
    test(`is a usage error: ${args.join(' ') || '(nothing)'}`, async (t) => {
      const home = folder(t);
      const { code, stdout, stderr } = await mcp(home, args);
      assert.match(stderr, message);
      assert.match(stderr, /\nsee mcp-auth-middleware (--help|help [a-z0-9]+)\n$/);
      assert.deepEqual({ code, stdout, files: readdirSync(home) }, { code: 2, stdout: '', files: [] });
    });
  }

  for (const form of [
    ['-o', 'some keys'],
    ['-osome keys'],
    ['-o=some keys'],
    ['--output', 'some keys'],
    ['--output=some keys'],
    ['--out', 'some keys'],
    ['-qosome keys'],
    ['-q', '-o', './some keys/'],
  ]) {
    test(`takes ${JSON.stringify(form)}`, async (t) => {
      const home = folder(t);
      mkdirSync(join(home, 'some keys'));
      copyFileSync(join(keys, 'mcp-private.json'), join(home, 'some keys/mcp-private.json'));
      const { code, stdout, stderr } = await mcp(home, ['public', ...form]);
      assert.deepEqual({ code, keys: JSON.parse(stdout), stderr }, { code: 0, keys: publicSet, stderr: '' });
    });
  }

  test('takes options after an operand, and everything after -- as operand', async (t) => {
    const home = folder(t);
    copyFileSync(join(keys, 'mcp-private.json'), join(home, '--all'));
    for (const args of [
      ['./--all', '-q'],
      ['-q', '--', '--all'],
    ]) {
      const { code, stdout } = await mcp(home, ['public', ...args]);
      assert.deepEqual([code, JSON.parse(stdout)], [0, publicSet]);
    }
  });

  test('takes an exact name before the abbreviations that it begins, and refuses an ambiguous one', async (t) => {
    const exact = await mcp(folder(t, keys), ['token', '--claim', 'a=1']);
    assert.equal(exact.code, 0, exact.stderr);
    const ambiguous = await mcp(folder(t), ['token', '--cl', 'a=1']);
    assert.match(ambiguous.stderr, /^error: --cl could be --claim or --claims\n/);
    assert.equal(ambiguous.code, 2);
  });

  test('prints the usage on stdout when asked for it, whatever else is given', async (t) => {
    const asked = await mcp(folder(t), ['--help']);
    assert.deepEqual([asked.code, asked.stderr], [0, '']);
    assert.match(asked.stdout, /^usage: mcp-auth-middleware COMMAND/);
    for (const args of [['-h'], ['help'], ['help', '-q']]) assert.deepEqual(await mcp(folder(t), args), asked);
    const commands = [...(asked.stdout.split('\n\n')[1] ?? '').matchAll(/^ {2}(\w+)/gm)].map(([, name = '']) => name);
    assert.ok(commands.length >= 10);
    for (const command of new Set(commands)) {
      const own = await mcp(folder(t), ['help', command]);
      assert.deepEqual([own.code, own.stderr], [0, '']);
      assert.ok(own.stdout.startsWith(`usage: mcp-auth-middleware ${command} `));
      assert.match(own.stdout, /\nExample: .*mcp-auth-middleware /);
      assert.deepEqual(await mcp(folder(t), [command, '-h']), own);
      assert.deepEqual(await mcp(folder(t), [command, '-qh', '-o', 'x']), own);
      for (const line of asked.stdout.split('\n')) assert.ok(line.length <= 120, line);
    }
  });

  test('prints the version of the package', async (t) => {
    const { version } = JSON.parse(readFileSync(join(root, 'package.json'), 'utf8'));
    for (const args of [['-V'], ['--version'], ['generate', '-V']]) {
      assert.deepEqual(await mcp(folder(t), args), { code: 0, signal: null, stdout: `${version}\n`, stderr: '' });
    }
  });
});

describe('generate', () => {
  test('makes an RSA-4096 pair that encrypts and decrypts, and says where it is', async (t) => {
    const home = folder(t);
    const { code, stdout, stderr } = await mcp(home, ['generate']);
    assert.deepEqual({ code, stdout }, { code: 0, stdout: generated });
    const lines = 'For .env:\n  MCP_KEY_FILE_PATH=.keys/mcp-private.json\nFor .gitignore:\n  .keys/\nKey id (kid):\n  ';
    assert.ok(stderr.startsWith(lines), stderr);
    assert.match(stderr.slice(lines.length), /^[\w-]{43}\n$/);
    assert.deepEqual(readdirSync(join(home, '.keys')), ['mcp-private.json', 'mcp-public.json']);
    const set: JwkSet = JSON.parse(readFileSync(join(home, '.keys/mcp-private.json'), 'utf8'));
    const published: JwkSet = JSON.parse(readFileSync(join(home, '.keys/mcp-public.json'), 'utf8'));
    assert.deepEqual(published, publicJwks(set));
    const [jwk] = published.keys;
    assert.ok(jwk);
    assert.equal(Buffer.from(String(jwk.n), 'base64url').length, 512);
    assert.deepEqual(Object.keys(jwk).sort(), ['alg', 'e', 'kid', 'kty', 'n', 'use']);
    assert.deepEqual([jwk.alg, jwk.use, jwk.kid], ['RSA-OAEP-256', 'enc', jwkThumbprint(jwk)]);
    const token = await mcp(home, ['token', '--claim', 'sub=ada']);
    const { plaintext } = await compactDecrypt(token.stdout.trim(), set);
    assert.equal(JSON.parse(Buffer.from(plaintext).toString()).sub, 'ada');
  });

  for (const umask of ['0000', '0022', '0077']) {
    test(`makes the private key readable by its owner only under umask ${umask}`, async (t) => {
      const home = folder(t);
      const made = await mcpUnder(
        home,
        ['sh', '-c', `umask ${umask}; exec "$@"`, 'sh'],
        ['generate', '--bits=2048', '-oa/b'],
      );
      assert.equal(made.code, 0, made.stderr);
      const modes = ['a', 'a/b', 'a/b/mcp-private.json'].map((name) => mode(join(home, name)));
      assert.deepEqual(modes, ['0700', '0700', '0600']);
      assert.equal(
        mode(join(home, 'a/b/mcp-public.json')),
        (0o644 & ~Number.parseInt(umask, 8)).toString(8).padStart(4, '0'),
      );
    });
  }

  test('marks the key for RSA-OAEP and takes the modulus length', async (t) => {
    const home = folder(t);
    assert.equal((await mcp(home, ['generate', '--alg', 'RSA-OAEP', '--bits', '3072'])).code, 0);
    const set: JwkSet = JSON.parse(readFileSync(join(home, '.keys/mcp-private.json'), 'utf8'));
    const [jwk] = publicJwks(set).keys;
    assert.deepEqual([jwk?.alg, Buffer.from(String(jwk?.n), 'base64url').length], ['RSA-OAEP', 384]);
    const token = (await mcp(home, ['token'])).stdout.trim();
    assert.equal(decodeProtectedHeader(token).alg, 'RSA-OAEP');
    await compactDecrypt(token, set);
  });

  const rotateFirst = 'rotate adds a new key and loses no request; ';
  for (const [present, advice] of [
    [['mcp-private.json', 'mcp-public.json'], `${rotateFirst}-f replaces them and destroys the old private key`],
    [
      ['mcp-private.json'],
      `${rotateFirst}public --all > .keys/mcp-public.json writes the missing public half; ` +
        '-f replaces them and destroys the old private key',
    ],
    [['mcp-public.json'], '-f makes a new pair'],
  ] as const) {
    test(`refuses to replace ${present.join(' and ')}`, async (t) => {
      const home = folder(t);
      mkdirSync(join(home, '.keys'));
      for (const name of present) writeFileSync(join(home, '.keys', name), '');
      const { code, stdout, stderr } = await mcp(home, ['generate', '--bits', '2048']);
      const list = present.map((name) => `.keys/${name}`).join(', ');
      assert.equal(stderr, `error: keys already exist: ${list}; ${advice}\n`);
      assert.deepEqual(
        { code, stdout, files: readdirSync(join(home, '.keys')) },
        { code: 1, stdout: '', files: [...present] },
      );
    });
  }

  test('replaces keys with -f, and says nothing on stderr with -q', async (t) => {
    const home = folder(t, keys);
    const { code, stdout, stderr } = await mcp(home, ['generate', '-qf', '--bits', '2048']);
    assert.deepEqual({ code, stdout, stderr }, { code: 0, stdout: generated, stderr: '' });
    assert.deepEqual(readdirSync(join(home, '.keys')), ['mcp-private.json', 'mcp-public.json']);
    const set: JwkSet = JSON.parse(readFileSync(join(home, '.keys/mcp-private.json'), 'utf8'));
    assert.notDeepEqual(set, privateSet);
    assert.deepEqual(JSON.parse(readFileSync(join(home, '.keys/mcp-public.json'), 'utf8')), publicJwks(set));
  });

  test('warns about a folder that others can write to, and leaves its mode alone', async (t) => {
    const home = folder(t);
    mkdirSync(join(home, 'open'));
    chmodSync(join(home, 'open'), 0o777);
    const { code, stderr } = await mcp(home, ['generate', '-q', '--bits', '2048', '-o', 'open']);
    assert.deepEqual(
      { code, stderr, mode: mode(join(home, 'open')) },
      { code: 0, stderr: 'warning: open can be written to by others; chmod go-w open\n', mode: '0777' },
    );
  });

  test('quotes the .env line of a folder with a blank, so that node --env-file reads it', async (t) => {
    const home = folder(t);
    const { stderr } = await mcp(home, ['generate', '--bits', '2048', '-o', 'my keys #1/']);
    const [, line = ''] = stderr.split('\n');
    writeFileSync(join(home, '.env'), line.trim());
    const { stdout } = await run(process.execPath, ['--env-file=.env', '-p', 'process.env.MCP_KEY_FILE_PATH'], {
      cwd: home,
    });
    assert.equal(stdout, 'my keys #1/mcp-private.json\n');
  });

  const obstacles: [name: string, put: (home: string) => void, message: RegExp][] = [
    [
      'a folder that is a file',
      (home) => writeFileSync(join(home, '.keys'), ''),
      /^error: cannot make the folder \.keys: file already exists\n$/,
    ],
    ['a folder below a file', (home) => symlinkSync('/dev/null/x', join(home, '.keys')), /^error: .*\.keys.*: \S/],
    [
      'a private key that is a symbolic link',
      (home) => (mkdirSync(join(home, '.keys')), symlinkSync('x', join(home, '.keys/mcp-private.json'))),
      /^error: \.keys\/mcp-private\.json is a symbolic link and is not followed; .*\n$/,
    ],
    [
      'a public key that is a folder',
      (home) => mkdirSync(join(home, '.keys/mcp-public.json'), { recursive: true }),
      /^error: \.keys\/mcp-public\.json is not a regular file; .*\n$/,
    ],
  ];
  for (const [name, put, message] of obstacles) {
    test(`fails on ${name}, even with -f, and changes nothing`, async (t) => {
      const home = folder(t);
      put(home);
      const before = readdirSync(home, { recursive: true });
      const { code, stdout, stderr } = await mcp(home, ['generate', '-f', '--bits', '2048']);
      assert.match(stderr, message);
      assert.deepEqual(
        { code, stdout, files: readdirSync(home, { recursive: true }) },
        { code: 1, stdout: '', files: before },
      );
    });
  }

  test('fails on a folder that it may not write to', { skip: without('setpriv') }, async (t) => {
    const home = folder(t);
    mkdirSync(join(home, '.keys'), { mode: 0o500 });
    const { code, stderr } = await mcpUnder(home, bound, ['generate', '--bits', '2048']);
    assert.deepEqual(
      { code, stderr },
      { code: 1, stderr: 'error: cannot write to .keys: permission denied; nothing was changed\n' },
    );
    assert.deepEqual(readdirSync(join(home, '.keys')), []);
  });

  for (const alg of ['Ed25519', 'EdDSA', 'ES256']) {
    test(`--signing makes an issuer's ${alg} pair that signs tokens beside the server's keys`, async (t) => {
      const home = folder(t, keys);
      const made = await mcp(home, ['generate', '--signing', ...(alg === 'Ed25519' ? [] : ['--alg', alg])]);
      assert.deepEqual(made, {
        code: 0,
        signal: null,
        stdout:
          'Signing keys generated:\n  Private: .keys/signing-private.json\n  Public:  .keys/signing-public.json\n',
        stderr: made.stderr,
      });
      assert.match(made.stderr, /^For \.gitignore:\n {2}\.keys\/\nKey id \(kid\):\n {2}[\w-]{43}\n$/);
      assert.equal(mode(join(home, '.keys/signing-private.json')), '0600');
      const text = readFileSync(join(home, '.keys/signing-public.json'), 'utf8');
      assert.doesNotMatch(text, privateMembers);
      const [jwk] = JSON.parse(text).keys;
      assert.deepEqual([jwk.alg, jwk.use, jwk.kid], [alg, 'sig', jwkThumbprint(jwk)]);
      const minted = await mcp(home, [
        'token',
        '--sign',
        '.keys/signing-private.json',
        '--issuer',
        'https://i.example',
        '--audience',
        'https://a.example',
        '--claim',
        'sub=ada',
      ]);
      assert.equal(minted.code, 0, minted.stderr);
      const { plaintext, protectedHeader } = await compactDecrypt(minted.stdout.trim(), privateSet);
      assert.equal(protectedHeader.cty, 'JWT');
      const { payload } = await compactVerify(Buffer.from(plaintext).toString(), await importJWK(jwk));
      const { iss, aud, sub } = JSON.parse(Buffer.from(payload).toString());
      assert.deepEqual({ iss, aud, sub }, { iss: 'https://i.example', aud: 'https://a.example', sub: 'ada' });
      assert.equal((await mcp(home, ['generate', '--signing'])).code, 1);
      assert.deepEqual(JSON.parse(readFileSync(join(home, '.keys/mcp-private.json'), 'utf8')), privateSet);
    });
  }
});

describe('k8s', { concurrency: 2 }, () => {
  const secret = (text: string, version: '1.1' | '1.2' = '1.2') => parse(text, { version });
  const setOf = (text: string): JwkSet => JSON.parse(Buffer.from(secret(text).data.mcp_jwks, 'base64').toString());

  test('makes a pair, saves it and prints it as a Secret', async (t) => {
    const home = folder(t);
    const { code, stdout, stderr } = await mcp(home, ['k8s']);
    assert.equal(code, 0, stderr);
    assert.match(stderr, /^Keys saved in \.keys\n.*kubectl apply --server-side -f -\n.*annotation.*\n$/);
    const { data, ...rest } = secret(stdout);
    assert.deepEqual(rest, {
      apiVersion: 'v1',
      kind: 'Secret',
      metadata: { name: 'mcp-server-keys', namespace: 'default' },
      type: 'Opaque',
    });
    assert.deepEqual(Object.keys(data), ['mcp_jwks']);
    assert.deepEqual(setOf(stdout), JSON.parse(readFileSync(join(home, '.keys/mcp-private.json'), 'utf8')));
    assert.equal(mode(join(home, '.keys/mcp-private.json')), '0600');
  });

  test('refuses when keys exist, naming --from and -f', async (t) => {
    const home = folder(t, keys);
    const { code, stdout, stderr } = await mcp(home, ['k8s']);
    assert.deepEqual({ code, stdout }, { code: 1, stdout: '' });
    assert.match(stderr, /^error: keys already exist: .*--from \.keys\/mcp-private\.json.* -f /);
    assert.deepEqual(contents(join(home, '.keys')), contents(keys));
  });

  test('replaces existing keys with -f', async (t) => {
    const home = folder(t, keys);
    const { code, stdout } = await mcp(home, ['k8s', '-qf']);
    assert.equal(code, 0);
    assert.notDeepEqual(setOf(stdout), privateSet);
    assert.deepEqual(setOf(stdout), JSON.parse(readFileSync(join(home, '.keys/mcp-private.json'), 'utf8')));
  });

  test('--ephemeral leaves nothing on disk, and looks at none of what is there', async (t) => {
    const home = folder(t);
    const { code, stdout } = await mcp(home, ['k8s', '--ephemeral', '-o', 'nowhere']);
    assert.deepEqual({ code, files: readdirSync(home) }, { code: 0, files: [] });
    assert.equal(publicJwks(setOf(stdout)).keys.length, 1);
  });

  test('--from prints an existing set from a file, from standard input, and a single JWK', async (t) => {
    const home = folder(t, keys);
    const expected = await mcp(home, ['k8s', '--from', '.keys/mcp-private.json']);
    assert.deepEqual(setOf(expected.stdout), privateSet);
    assert.deepEqual(await mcp(home, ['k8s', '--from', '-'], { input: JSON.stringify(privateSet) }), expected);
    assert.deepEqual(await mcp(home, ['k8s', '--from=-'], { input: JSON.stringify(privateSet.keys[0]) }), expected);
  });

  test('--from refuses a set that no server could use', async (t) => {
    const [jwk] = privateSet.keys;
    const same = { keys: [jwk, jwk] };
    const five = { keys: ['1', '2', '3', '4', '5'].map((kid) => ({ ...jwk, kid })) };
    const mixed = { keys: [jwk, ...publicSet.keys.map((key) => ({ ...key, kid: 'other' }))] };
    const broken = { keys: [{ ...jwk, d: jwk?.p }] };
    for (const input of [
      ...[publicSet, same, five, mixed, broken].map((set) => JSON.stringify(set)),
      '{"keys":[]}',
      '[]',
      'null',
      '{"keys":[null]}',
      '',
    ]) {
      const { code, stdout, stderr } = await mcp(folder(t), ['k8s', '--from', '-'], { input });
      assert.deepEqual({ code, stdout }, { code: 1, stdout: '' }, input);
      assert.match(stderr, /^error: .+\n$/);
    }
  });

  // Names that Kubernetes takes and that YAML 1.1 or 1.2 could take for something else.
  const tricky = [
    'null',
    'true',
    'false',
    'yes',
    'no',
    'on',
    'off',
    'y',
    'n',
    '123',
    '0123',
    '0x1f',
    '0o17',
    '0b11',
    '1e3',
    '12e03',
    '2024-01-01',
    '0',
    'a',
    'null-1',
    'e3',
    'x-1',
  ];
  test('quotes names where YAML needs it', async (t) => {
    const home = folder(t, keys);
    for (const name of [...tricky, 'x.y', '1.5', '1.2.3']) {
      const namespace = name.includes('.') ? 'default' : name;
      const { code, stdout, stderr } = await mcp(home, [
        'k8s',
        '-q',
        '--from',
        '.keys/mcp-private.json',
        '-s',
        name,
        '-n',
        namespace,
      ]);
      assert.deepEqual({ code, stderr }, { code: 0, stderr: '' });
      for (const version of ['1.1', '1.2'] as const)
        assert.deepEqual(secret(stdout, version).metadata, { name, namespace });
    }
  });

  const badLabels = [
    '',
    '-a',
    'a-',
    'A',
    'ä',
    'a_b',
    'a b',
    'a\nb: c',
    "'",
    '"',
    'a: b',
    '{}',
    '#',
    'a\n',
    '*x',
    '&x',
    '!x',
    '%',
    '@',
    'x'.repeat(64),
  ];
  for (const [option, names] of [
    ['-n', [...badLabels, 'a.b']],
    ['-s', [...badLabels.slice(0, -1), '.a', 'a.', 'a..b', 'a.-b', 'x'.repeat(254)]],
  ] as const) {
    test(`refuses names for ${option} that Kubernetes refuses or that would inject YAML`, async (t) => {
      const home = folder(t, keys);
      for (const name of names) {
        const { code, stdout, stderr } = await mcp(home, [
          'k8s',
          '--from',
          '.keys/mcp-private.json',
          `${option}${name}`,
        ]);
        assert.deepEqual({ code, stdout }, { code: 2, stdout: '' }, name);
        assert.match(stderr, /^error: (--namespace|--secret-name|-n needs a value|-s needs a value)/);
      }
    });
  }

  test('is read by kubectl', { skip: without('kubectl') }, async (t) => {
    const home = folder(t, keys);
    for (const name of ['mcp-server-keys', '1e3', 'null', '0x1f', 'on']) {
      const { stdout: input } = await mcp(home, ['k8s', '--from', '.keys/mcp-private.json', '-n', name, '-s', name]);
      // `label --local` parses and types the object as `apply` does, without asking a cluster.
      const { code, stdout, stderr } = await run(
        'kubectl',
        ['label', '--local', '-f', '-', '-o', 'json', 'checked=yes'],
        { input },
      );
      assert.equal(code, 0, stderr);
      const { kind, metadata, type, data } = JSON.parse(stdout);
      assert.deepEqual(
        { kind, metadata, type },
        { kind: 'Secret', metadata: { name, namespace: name, labels: { checked: 'yes' } }, type: 'Opaque' },
      );
      assert.deepEqual(JSON.parse(Buffer.from(data.mcp_jwks, 'base64').toString()), privateSet);
    }
  });

  test('shows a private key on a terminal only with --show', { skip: without('script') }, async (t) => {
    const home = folder(t, keys);
    const onTerminal = (args: string) =>
      run('script', ['-qec', `'${process.execPath}' '${cli}' ${args}`, '/dev/null'], { cwd: home });
    for (const args of ['k8s --from .keys/mcp-private.json', 'k8s --ephemeral', 'k8s -o new', 'k8s -f']) {
      const refused = await onTerminal(args);
      assert.equal(
        refused.stdout.replaceAll('\r', ''),
        'error: this prints a private key, and a terminal keeps it; pipe it to a program or a file, or add --show\n',
      );
      assert.equal(refused.code, 1);
    }
    assert.deepEqual([existsSync(join(home, 'new')), contents(join(home, '.keys'))], [false, contents(keys)]);
    const shown = await onTerminal('k8s -q --show --from .keys/mcp-private.json');
    assert.deepEqual([shown.code, setOf(shown.stdout)], [0, privateSet]);
  });
});

describe('public', { concurrency: 2 }, () => {
  test('prints the public key of a file, of standard input and of the folder', async (t) => {
    const home = folder(t, keys);
    const input = readFileSync(join(keys, 'mcp-private.json'));
    for (const [args, options] of [
      [[], {}],
      [['.keys/mcp-private.json'], {}],
      [['-'], { input }],
      [['/dev/stdin'], { input }],
      [['--all'], {}],
      [['.keys/mcp-public.json'], {}],
    ] as const) {
      const { code, stdout, stderr } = await mcpUnder(
        home,
        ['sh', '-c', 'cat | "$@"', 'sh'],
        ['public', ...args],
        options,
      );
      assert.deepEqual({ code, stderr, set: JSON.parse(stdout) }, { code: 0, stderr: '', set: publicSet });
      assert.doesNotMatch(stdout, privateMembers);
    }
  });

  test('prints the active key, and with --all every key that has not expired', async (t) => {
    const home = folder(t);
    const set: JwkSet & { keys: Record<string, unknown>[] } = { keys: [] };
    const now = Math.floor(Date.now() / 1000);
    const times = {
      old: { nbf: now - 100 },
      active: { nbf: now - 50 },
      next: { nbf: now + 1000 },
      expired: { nbf: now - 10, exp: now - 1 },
    };
    for (const [kid, time] of Object.entries(times)) {
      await mcp(home, ['generate', '-qf', '--bits', '2048']);
      const [jwk] = JSON.parse(readFileSync(join(home, '.keys/mcp-private.json'), 'utf8')).keys;
      set.keys.push({ ...jwk, kid, ...time });
    }
    const kids = async (...args: string[]): Promise<unknown[]> => {
      const { stdout } = await mcp(home, ['public', '-', ...args], { input: JSON.stringify(set) });
      assert.doesNotMatch(stdout, privateMembers);
      return JSON.parse(stdout).keys.map(({ kid, nbf, exp }: Record<string, unknown>) => [kid, nbf, exp]);
    };
    assert.deepEqual(await kids(), [['active', undefined, undefined]]);
    assert.deepEqual(await kids('--all'), [
      ['active', now - 50, undefined],
      ['old', now - 100, undefined],
      ['next', now + 1000, undefined],
    ]);
    set.keys.splice(0, 3);
    for (const args of [
      ['public', '-'],
      ['public', '-', '--all'],
      ['k8s', '--from', '-'],
      ['token', '--key', '-'],
    ]) {
      const { code, stdout, stderr } = await mcp(home, args, { input: JSON.stringify(set) });
      assert.deepEqual({ code, stdout }, { code: 1, stdout: '' });
      assert.match(stderr, /^error: .*expired; generate makes a new one, and rotate adds one\n$/);
    }
  });

  const bad: [name: string, input: string, message: RegExp][] = [
    ['an empty set', '{"keys":[]}', /^error: .+\n$/],
    ['nothing', '', /^error: standard input is empty\n$/],
    [
      'a byte order mark',
      '\xef\xbb\xbf{}',
      /^error: standard input: starts with a byte order mark \(BOM\); save it as UTF-8 without one\n$/,
    ],
    ['UTF-16', '\xff\xfe{\0', /^error: standard input: starts with a byte order mark/],
    ['text that is not JSON', '{"d":"secret-of-mine', /^error: standard input is not JSON\n$/],
    ['JSON that is not a set', '{"d":"secret-of-mine"}', /^error: standard input is not a JWK Set\n$/],
    ['octets that are not UTF-8', '\xff', /^error: /],
    ['more than a mebibyte', ' '.repeat(1024 * 1024 + 1), /^error: standard input is larger than 1024 KiB\n$/],
  ];
  for (const [name, text, message] of bad) {
    test(`refuses ${name}, and repeats none of it`, async (t) => {
      const input = Buffer.from(text, 'latin1');
      for (const args of [['-'], ['-', '--all']]) {
        const { code, stdout, stderr } = await mcp(folder(t), ['public', ...args], { input });
        assert.deepEqual({ code, stdout }, { code: 1, stdout: '' });
        assert.match(stderr, message);
        assert.doesNotMatch(stderr, /secret-of-mine/);
      }
    });
  }

  test('says what to do when there is no file, and what is wrong with a folder', async (t) => {
    const home = folder(t);
    const missing = await mcp(home, ['public']);
    assert.deepEqual(missing, {
      code: 1,
      signal: null,
      stdout: '',
      stderr:
        'error: cannot read .keys/mcp-private.json: no such file or directory; ' +
        'make keys with generate, or name their folder with -o\n',
    });
    const directory = await mcp(home, ['public', '.']);
    assert.deepEqual(directory, {
      code: 1,
      signal: null,
      stdout: '',
      stderr: 'error: cannot read .: it is a folder\n',
    });
  });
});

describe('token', { concurrency: 2 }, () => {
  const open = async (token: string) =>
    JSON.parse(Buffer.from((await compactDecrypt(token.trim(), privateSet)).plaintext).toString());

  test('takes text claims from arguments and typed ones from a file or standard input', async (t) => {
    const home = folder(t, keys);
    const input = '{"n":1,"list":[true,null],"sub":"file","__proto__":{"x":1}}';
    writeFileSync(join(home, 'claims.json'), input);
    for (const source of ['claims.json', '-']) {
      const args = [
        'token',
        '--claims',
        source,
        '--claim',
        'sub=ada',
        '--claim=zip=01234',
        '--claim',
        'eq=a=b',
        '--claim',
        'empty=',
      ];
      const { code, stdout, stderr } = await mcp(home, args, { input });
      assert.deepEqual({ code, stderr }, { code: 0, stderr: '' });
      assert.match(stdout, /^[\w-]+(\.[\w-]+){4}\n$/);
      const { iat, exp, ...claims } = await open(stdout);
      assert.equal(exp - iat, 3600);
      assert.equal(
        JSON.stringify(claims, Object.keys(claims).sort()),
        JSON.stringify(
          { ...JSON.parse(input), sub: 'ada', zip: '01234', eq: 'a=b', empty: '' },
          Object.keys(claims).sort(),
        ),
      );
    }
  });

  for (const [ttl, seconds] of [
    ['90s', 90],
    ['10m', 600],
    ['24h', 86_400],
    ['7d', 604_800],
  ] as const) {
    test(`lives for ${ttl}`, async (t) => {
      const { stdout } = await mcp(folder(t, keys), ['token', '--ttl', ttl]);
      const { iat, exp } = await open(stdout);
      assert.equal(exp - iat, seconds);
    });
  }

  test('keeps a claim exp, but not beside --ttl', async (t) => {
    const home = folder(t, keys);
    const kept = await mcp(home, ['token', '--claims', '-'], { input: '{"exp":4102444800}' });
    assert.equal((await open(kept.stdout)).exp, 4_102_444_800);
    const both = await mcp(home, ['token', '--claims', '-', '--ttl', '1h'], { input: '{"exp":4102444800}' });
    assert.match(both.stderr, /^error: --ttl and a claim exp contradict each other/);
    assert.equal(both.code, 2);
  });

  test('encrypts to a public set, to a private one, to standard input, and to what is left of the pair', async (t) => {
    const home = folder(t, keys);
    for (const args of [
      ['--key', '.keys/mcp-public.json'],
      ['--key', '.keys/mcp-private.json'],
    ])
      await open((await mcp(home, ['token', ...args])).stdout);
    await open((await mcp(home, ['token', '--key=-'], { input: JSON.stringify(publicSet.keys[0]) })).stdout);
    const server = folder(t);
    mkdirSync(join(server, '.keys'));
    copyFileSync(join(keys, 'mcp-public.json'), join(server, '.keys/mcp-public.json'));
    await open((await mcp(server, ['token'])).stdout);
  });

  test('refuses claims that are no object', async (t) => {
    for (const input of ['[]', '"x"', 'null', '{']) {
      const { code, stdout, stderr } = await mcp(folder(t, keys), ['token', '--claims', '-'], { input });
      assert.deepEqual({ code, stdout }, { code: 1, stdout: '' });
      assert.match(stderr, /^error: (-|standard input) is not (a )?JSON/);
    }
  });

  test('refuses to sign with a public key, with several keys and with an encryption key', async (t) => {
    const home = folder(t, keys);
    await mcp(home, ['generate', '--signing']);
    const jwk = JSON.parse(readFileSync(join(home, '.keys/signing-private.json'), 'utf8'));
    writeFileSync(join(home, 'two.json'), JSON.stringify({ keys: [jwk, jwk] }));
    for (const file of ['.keys/signing-public.json', 'two.json', '.keys/mcp-private.json']) {
      const { code, stdout, stderr } = await mcp(home, ['token', '--sign', file, '--issuer', 'i', '--audience', 'a']);
      assert.deepEqual({ code, stdout }, { code: 1, stdout: '' }, file);
      assert.match(stderr, /^error: .+\n$/);
    }
  });

  describe('--url', () => {
    test('encrypts to the key that a server publishes', async (t) => {
      const { url } = await serve(t, (_, res) => res.end(JSON.stringify(publicSet)));
      const { code, stdout, stderr } = await mcp(folder(t), [
        'token',
        '--url',
        `${url}/.well-known/jwks.json`,
        '--claim',
        'sub=ada',
      ]);
      assert.deepEqual({ code, stderr }, { code: 0, stderr: '' });
      assert.equal((await open(stdout)).sub, 'ada');
    });

    const answers: [
      name: string,
      answer: (url: string) => { status?: number; location?: string; body?: string; hang?: true },
      message: RegExp,
    ][] = [
      [
        'a redirect',
        (url) => ({ status: 302, location: `${url}/keys` }),
        /^error: http:\/\/127\.0\.0\.1:\d+\/first answered 302 instead of 200; redirects are not followed\n$/,
      ],
      ['an error', () => ({ status: 500 }), /answered 500 instead of 200/],
      ['no JSON', () => ({ body: '<html>secret-of-mine' }), /\/first is not JSON\n$/],
      ['no set', () => ({ body: '{"keys":{}}' }), /\/first is not a JWK Set\n$/],
      ['no key', () => ({ body: '{"keys":[]}' }), /^error: .+\n$/],
      [
        'more than 512 KiB',
        () => ({ body: JSON.stringify({ ...publicSet, more: ' '.repeat(512 * 1024) }) }),
        /\/first is larger than 512 KiB\n$/,
      ],
      [
        'no end in 5 seconds',
        () => ({ body: '{', hang: true }),
        /^error: cannot fetch http:\S+\/first: no complete answer within 5 seconds\n$/,
      ],
    ];
    for (const [name, answer, message] of answers) {
      test(`refuses ${name}`, async (t) => {
        let asked = 0;
        const { url } = await serve(t, (_, res) => {
          asked += 1;
          const { status = 200, location, body = '', hang } = answer(url);
          res.writeHead(status, location ? { location } : {}).write(body || ' ');
          if (!hang) res.end();
        });
        const { code, stdout, stderr } = await mcp(folder(t), ['token', '--url', `${url}/first?secret-of-mine`], {
          timeout: 20_000,
        });
        assert.match(stderr, message);
        assert.doesNotMatch(stderr, /secret-of-mine/);
        assert.deepEqual({ code, stdout, asked }, { code: 1, stdout: '', asked: 1 });
      });
    }

    test('says why nobody answers', async (t) => {
      const { server, url } = await serve(t, () => {});
      server.close();
      const { code, stderr } = await mcp(folder(t), ['token', '--url', `${url}/x`]);
      assert.deepEqual({ code, stderr }, { code: 1, stderr: `error: cannot fetch ${url}/x: connection refused\n` });
    });

    test('is not followed into a published private key', async (t) => {
      const { url } = await serve(t, (_, res) => res.end(JSON.stringify(privateSet)));
      const { code, stdout, stderr } = await mcp(folder(t), ['token', '--url', url]);
      assert.deepEqual({ code, stdout }, { code: 1, stdout: '' });
      assert.match(stderr, /^error: .*publishes a private key/);
    });
  });
});

describe('streams', () => {
  for (const [name, shell, expected] of [
    ['a reader that has gone', '{ sleep 0.2; "$@"; echo "status $?" >&2; } | :', 'status 1\n'],
    [
      'a full disk',
      '"$@" >/dev/full; echo "status $?" >&2',
      'error: cannot write to standard output: no space left on device\nstatus 1\n',
    ],
    [
      'nobody who reads the errors',
      '{ sleep 0.2; "$@" --frobnicate; echo "status $?" >&3; } 3>&2 2>&1 >/dev/null | :',
      'status 2\n',
    ],
  ] as const) {
    for (const args of [['public'], ['token'], ['k8s', '-q', '--from', '.keys/mcp-private.json'], ['--help']]) {
      if (name.startsWith('nobody') && args[0] === '--help') continue;
      test(`${args[0]} has no stack trace for ${name}`, async (t) => {
        const { stderr } = await mcpUnder(folder(t, keys), ['sh', '-c', shell, 'sh'], args);
        assert.equal(stderr, expected);
      });
    }
  }

  test('no output is ever coloured', async (t) => {
    const home = folder(t, keys);
    for (const env of [{ NO_COLOR: '1' }, { FORCE_COLOR: '1', NO_COLOR: undefined }]) {
      for (const args of [['--help'], ['generate'], ['public'], ['frobnicate']]) {
        const { stdout, stderr } = await mcp(home, args, { env });
        assert.doesNotMatch(stdout + stderr, /\x1b/);
      }
    }
  });

  test('no command waits for a terminal or for input that it was not told to read', async (t) => {
    const home = folder(t, keys);
    for (const args of [['generate'], ['generate', '-f', '--bits', '2048'], ['public'], ['token'], ['clean']]) {
      // stdin stays open
      const child = spawn(process.execPath, [cli, ...args], { cwd: home, stdio: ['pipe', 'pipe', 'ignore'] });
      child.stdout?.resume();
      t.after(() => child.kill('SIGKILL'));
      const [code] = await once(child, 'close');
      assert.equal(code, args.length === 1 && args[0] === 'generate' ? 1 : 0);
    }
  });
});

test('dist/cli.js works alone, copied into an empty folder', async (t) => {
  const home = folder(t);
  copyFileSync(cli, join(home, 'cli.js'));
  const alone = (...args: string[]) =>
    run(process.execPath, ['cli.js', ...args], { cwd: home, env: { NODE_PATH: undefined } });
  const made = await alone('generate', '--bits', '2048');
  assert.deepEqual([made.code, made.stdout], [0, generated]);
  assert.match(made.stderr, /^For \.env:\n/);
  const { stdout } = await alone('token', '--claim', 'sub=ada');
  const { plaintext } = await compactDecrypt(
    stdout.trim(),
    JSON.parse(readFileSync(join(home, '.keys/mcp-private.json'), 'utf8')),
  );
  assert.equal(JSON.parse(Buffer.from(plaintext).toString()).sub, 'ada');
  assert.equal((await alone('clean')).code, 0);
  assert.deepEqual(readdirSync(home).sort(), ['.keys', 'cli.js']);
  assert.match(readFileSync(cli, 'utf8'), /^#!\/usr\/bin\/env node\n/);
  assert.equal(mode(cli), '0755');
});
