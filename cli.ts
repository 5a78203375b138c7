#!/usr/bin/env node
// The command of mcp-auth-middleware: makes the keys of an MCP server, puts them into Kubernetes, rotates, explains and
// destroys them. MIT licence.
//
// Results go to stdout, everything else to stderr. No secret is taken from the command line, where every process can
// read it, and none is printed but by `k8s` and `rotate -`, whose purpose it is. Key material and what it was parsed
// from never enter a message, and neither do the runtime's own error texts, which differ between Node, Bun and Deno.
import { spawnSync } from 'node:child_process';
import { createPrivateKey, createPublicKey, generateKeyPairSync, randomBytes } from 'node:crypto';
import {
  chmodSync,
  closeSync,
  constants,
  createReadStream,
  fchmodSync,
  fchownSync,
  fstatSync,
  fsyncSync,
  linkSync,
  lstatSync,
  mkdirSync,
  openSync,
  readdirSync,
  readFileSync,
  readSync,
  renameSync,
  rmdirSync,
  statSync,
  unlinkSync,
  writeFileSync,
  writeSync,
  type Stats,
} from 'node:fs';
import { constants as system } from 'node:os';
import { basename, dirname, isAbsolute, normalize, relative } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import type { Jwk, JwkSet, JWETokenVerifier, PrivateSigningJwk } from './mcp-auth.ts';

// ## The commands: one table for the usage, the help of each command, the suggestions and the completions

interface Option {
  readonly short?: string;
  /** What it takes, as the usage calls it. Names of files are checked before anything is done with them. */
  readonly value?: 'DIR' | 'FILE' | 'FILE|-' | 'FILE|URL' | 'URL' | 'A' | 'N' | 'T' | 'K=V' | 'I' | 'NAME';
  readonly repeats?: true;
}
const OPTIONS = {
  output: { short: 'o', value: 'DIR' },
  quiet: { short: 'q' },
  help: { short: 'h' },
  version: { short: 'V' },
  alg: { value: 'A' },
  bits: { value: 'N' },
  signing: {},
  force: { short: 'f' },
  overlap: { value: 'T' },
  grace: { value: 'T' },
  json: {},
  key: { value: 'FILE' },
  issuer: { value: 'I' },
  jwks: { value: 'FILE|URL' },
  audience: { value: 'A' },
  namespace: { short: 'n', value: 'NAME' },
  'secret-name': { short: 's', value: 'NAME' },
  from: { value: 'FILE|-' },
  ephemeral: {},
  show: {},
  all: {},
  url: { value: 'URL' },
  claim: { value: 'K=V', repeats: true },
  claims: { value: 'FILE|-' },
  ttl: { value: 'T' },
  sign: { value: 'FILE' },
  stale: {},
} as const satisfies Record<string, Option>;
type Name = keyof typeof OPTIONS;
type Options = Partial<Record<Name, string>>;

interface Command {
  readonly lines: readonly (readonly [synopsis: string, does: string])[];
  readonly options: Options;
  /** The words that may follow, or the name of a file. */
  readonly operand?: 'file' | readonly string[];
  readonly example: string;
}

const COMMON: Options = {
  output: 'folder of the keys (default: .keys)',
  quiet: 'no hints on stderr, only errors and warnings',
  help: 'print this and exit; after a command, its own usage',
  version: 'print the version and exit',
};
const SHELLS = ['bash', 'zsh', 'fish'] as const;
const ALG = 'RSA-OAEP-256 (default) or RSA-OAEP';
const BITS = 'RSA modulus length: 2048, 3072 or 4096 (default)';

const COMMANDS = {
  generate: {
    lines: [
      ['generate [--alg A] [--bits N] [-f]', 'make a key pair: DIR/mcp-private.json (0600) and DIR/mcp-public.json'],
      ['generate --signing [--alg A] [-f]', "make an issuer's pair: DIR/signing-private.json, DIR/signing-public.json"],
    ],
    options: {
      alg: `${ALG}; with --signing Ed25519 (default), EdDSA or ES256`,
      bits: BITS,
      signing: 'a key to sign tokens with, not to encrypt them to',
      force: 'replace existing keys, destroying the old private key',
    },
    example: 'generate -o keys',
  },
  rotate: {
    lines: [
      ['rotate [FILE|-] [--overlap T] [--grace T]', 'add a key that takes over soon, and let the others expire later'],
    ],
    options: {
      overlap: 'time until servers publish the new key (default: 10m)',
      grace: 'time from then on until the other keys expire (default: 24h)',
      alg: 'algorithm of the new key (default: that of the published key)',
      bits: 'its modulus length (default: that of the published key)',
      show: 'print to a terminal, with -',
    },
    operand: 'file',
    example: 'rotate --overlap 0s --grace 0s    # revokes every key there was',
  },
  inspect: {
    lines: [['inspect [FILE|-] [--json]', 'say what a key set is and what a server would make of it']],
    options: { json: 'the same as JSON' },
    operand: 'file',
    example: 'inspect .keys/mcp-private.json',
  },
  verify: {
    lines: [
      ['verify [TOKEN_FILE|-] [--key FILE]', 'say check by check whether a server would accept a token, and why not'],
    ],
    options: {
      key: 'private key set of the server (default: FILE as below)',
      issuer: 'the issuer that the server trusts; needs --jwks and --audience',
      jwks: "that issuer's public keys: a file, or an https URL",
      audience: 'what the token must name as aud',
      json: 'the same as JSON',
      show: 'values of claims too, not only their names',
    },
    operand: 'file',
    example: 'verify token.txt --audience https://mcp.example/mcp',
  },
  k8s: {
    lines: [
      ['k8s [-n NAME] [-s NAME] [-f]', 'make a key pair and print it as a Kubernetes Secret'],
      ['k8s --from FILE|-', 'print the Secret of an existing private key set'],
      ['k8s --ephemeral', 'print the Secret of a new pair and leave nothing on disk'],
    ],
    options: {
      namespace: 'namespace of the Secret (default: default)',
      'secret-name': 'name of the Secret (default: mcp-server-keys); its key is mcp_jwks',
      from: 'the key set to print',
      ephemeral: 'save no keys',
      alg: ALG,
      bits: BITS,
      show: 'print it even when stdout is a terminal',
      force: 'replace existing keys, destroying the old private key',
    },
    example: 'k8s --ephemeral | kubectl apply --server-side -f -',
  },
  public: {
    lines: [['public [FILE|-] [--all]', 'print the public key that a server would publish now']],
    options: { all: 'every key that has not expired, the published one first' },
    operand: 'file',
    example: 'public --all > .keys/mcp-public.json',
  },
  token: {
    lines: [['token [--claim K=V]... [--ttl T]', 'print a token for trying a server out']],
    options: {
      key: 'key set of the server, public or private (default: FILE as below)',
      url: "fetch the server's JWK Set instead (https; http on this machine only)",
      claim: 'a claim whose value is the text V; may be repeated',
      claims: 'claims as a JSON object',
      ttl: 'lifetime (default: 1h)',
      sign: "sign with an issuer's private key before encrypting; needs --issuer and --audience",
      issuer: 'claim iss of a signed token',
      audience: 'claim aud of a signed token',
    },
    example: 'token --claim sub=ada --ttl 10m',
  },
  clean: {
    lines: [['clean [--signing] [--stale]', 'destroy the pair: overwrite, then remove']],
    options: {
      signing: "an issuer's pair instead",
      stale: 'only what interrupted runs have left',
    },
    example: 'clean -o keys',
  },
  help: {
    lines: [['help [COMMAND]', 'print this, or the usage of one command']],
    options: {},
    operand: ['generate', 'rotate', 'inspect', 'verify', 'k8s', 'public', 'token', 'clean', 'completion'],
    example: 'help rotate',
  },
  completion: {
    lines: [[`completion ${SHELLS.join('|')}`, 'print a completion script']],
    options: {},
    operand: SHELLS,
    example: 'source <(mcp-auth-middleware completion bash)',
  },
} as const satisfies Record<string, Command>;
type CommandName = keyof typeof COMMANDS;

const PROGRAM = 'mcp-auth-middleware';
const NOTES = `A FILE that is not given is DIR/mcp-private.json with -o, else the one that MCP_KEY_FILE_PATH names, else
.keys/mcp-private.json; - is standard input. T is 90s, 10m, 24h or 7d. Exit status: 0 done, 1 failed, 2 usage.
`;

const isName = (name: string): name is Name => Object.hasOwn(OPTIONS, name);
const namesIn = (options: Options): Name[] => Object.keys(options).filter(isName);

function optionLines(options: Options): string {
  const lines = namesIn(options).map((name) => {
    const { short, value }: Option = OPTIONS[name];
    const letter = short === undefined ? '    ' : `-${short}, `;
    const spelling = `${letter}--${name}${value === undefined ? '' : ` ${value}`}`;
    return `  ${spelling.padEnd(24)}${options[name]}\n`;
  });
  return lines.join('');
}
const synopses = ({ lines }: Command): string =>
  lines.map(([synopsis, does]) => `  ${synopsis.padEnd(44)}${does}\n`).join('');

function usage(): string {
  const commands: [string, Command][] = Object.entries(COMMANDS);
  const sections = commands
    .filter(([, { options }]) => namesIn(options).length > 0)
    .map(([name, { options }]) => `${name}:\n${optionLines(options)}`);
  const list = commands.map(([, command]) => synopses(command)).join('');
  return [
    `usage: ${PROGRAM} COMMAND [options]\n`,
    list,
    `Every command:\n${optionLines(COMMON)}`,
    ...sections,
    NOTES,
  ].join('\n');
}

function usageOf(name: CommandName): string {
  const command: Command = COMMANDS[name];
  const example = command.example.includes(PROGRAM) ? command.example : `${PROGRAM} ${command.example}`;
  return [
    `usage: ${PROGRAM} ${name} [options]\n`,
    synopses(command),
    optionLines({ ...command.options, ...COMMON }),
    `Example: ${example}\n`,
    NOTES,
  ].join('\n');
}

// ## Errors and output

/** An error with its exit status; its message says in lower case what is wrong and what to do next. */
class Stop extends Error {
  readonly status: number;
  constructor(status: number, message: string) {
    super(message);
    this.status = status;
  }
}
function fail(message: string): never {
  throw new Stop(1, message);
}
function misuse(message: string, command?: string): never {
  throw new Stop(2, `${message}\nsee ${PROGRAM} ${command === undefined ? '--help' : `help ${command}`}`);
}

/**
 * Text of others as it may stand in a line: what moves a terminal's cursor or turns the direction of letters is
 * spelled out.
 */
const shown = (text: string): string =>
  text.replace(
    /[\u0000-\u001f\u007f-\u009f\u061c\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff]/g,
    (character) => `\\u${character.charCodeAt(0).toString(16).padStart(4, '0')}`,
  );
const cutOff = (text: string): string => shown(text.length > 200 ? `${text.slice(0, 200)}...` : text);

/** Writes to stderr. Whatever is in it, only our own line breaks are control characters. */
const say = (text: string): unknown => process.stderr.write(`${text.split('\n').map(shown).join('\n')}\n`);
const warned = new Set<string>();
function warn(message: string): void {
  if (!warned.has(message)) say(`warning: ${message}`);
  warned.add(message);
}

/** Prints a result, and rejects when it could not be delivered: a lost Secret or token is a failure. */
function print(text: string): Promise<void> {
  return new Promise((resolve, reject) => {
    process.stdout.write(`${text}\n`, (error) => {
      if (!error) resolve();
      // Whoever closed the pipe knows it, as with every other filter: no message.
      else if (codeOf(error) === 'EPIPE') reject(new Stop(1, ''));
      else reject(new Stop(1, `cannot write to standard output: ${reason(error)}`));
    });
  });
}

/**
 * Whether standard output is closed (`>&-`). Node opens /dev/null in its place, for reading too, which tells it from a
 * `>/dev/null` that somebody wanted.
 */
function isStdoutClosed(): boolean {
  try {
    const stdout = fstatSync(1);
    if (!stdout.isCharacterDevice() || stdout.rdev !== statSync('/dev/null').rdev) return false;
    readSync(1, Buffer.alloc(1));
    return true;
  } catch {
    return false;
  }
}

/**
 * A private key goes to a terminal only when that is asked for, and into a file that others can read only with a
 * warning.
 */
function guardStdout(args: Args): void {
  // A terminal keeps what it has shown, and somebody may be looking.
  if (process.stdout.isTTY && !args.has('show'))
    fail('this prints a private key, and a terminal keeps it; pipe it to a program or a file, or add --show');
  const stdout = ifPossible(() => fstatSync(1));
  if (stdout?.isFile() && process.platform !== 'win32' && stdout.mode & 0o044)
    warn('other users can read the file that this private key is written to; chmod 600 it, or set umask 077 before');
}

function ifPossible<T>(act: () => T): T | undefined {
  try {
    return act();
  } catch {
    return undefined;
  }
}

function codeOf(error: unknown): string | undefined {
  return error instanceof Error && 'code' in error && typeof error.code === 'string' ? error.code : undefined;
}

/** What the codes of the system mean, in the same words on every runtime and platform. */
const REASONS: Record<string, string> = {
  EACCES: 'permission denied',
  'EACCES of an own file': 'permission denied; allow it with chmod u+rw',
  EAI_AGAIN: 'the name cannot be resolved at the moment',
  EBADF: 'it is closed',
  EBUSY: 'resource busy or locked; where a file is mounted by itself, mount its folder instead',
  ECONNREFUSED: 'connection refused',
  ConnectionRefused: 'connection refused',
  ECONNRESET: 'connection reset by the server',
  EDQUOT: 'disk quota exceeded',
  EEXIST: 'file already exists',
  EFBIG: 'file too large',
  EHOSTUNREACH: 'host is unreachable',
  EINVAL: 'invalid argument',
  EIO: 'i/o error',
  EISDIR: 'it is a folder',
  ELOOP: 'too many symbolic links',
  EMFILE: 'too many open files',
  EMLINK: 'too many links',
  ENAMETOOLONG: 'name too long',
  ENETUNREACH: 'network is unreachable',
  ENFILE: 'too many open files in the system',
  ENODEV: 'no such device',
  ENOENT: 'no such file or directory',
  ENOMEM: 'not enough memory',
  ENOSPC: 'no space left on device',
  ENOTDIR: 'not a directory',
  ENOTEMPTY: 'directory not empty',
  ENOTFOUND: 'no such host',
  ENOTSUP: 'the file system does not support it',
  ENXIO: 'no such device or address',
  EOPNOTSUPP: 'the file system does not support it',
  EPERM: 'operation not permitted',
  EPIPE: 'broken pipe',
  EROFS: 'read-only file system',
  ERR_ACCESS_DENIED: "Node's permission model denies it; allow it with --allow-fs-read and --allow-fs-write",
  ESTALE: 'stale file handle',
  ETIMEDOUT: 'connection timed out',
  ETXTBSY: 'the file is being run',
  EXDEV: 'it is on another file system',
};

/**
 * Our own sentence, or what the code means. A runtime's message is only for what has neither: a fault of this program.
 */
function reason(error: unknown): string {
  if (error instanceof Stop || !(error instanceof Error)) return error instanceof Error ? error.message : String(error);
  const code = codeOf(error);
  if (error.name === 'KeyError' || code === undefined) return error.message;
  return REASONS[code] ?? code;
}

/** Does something with a file, and says what could not be done when the system refuses. */
function attempt<T>(what: string, act: () => T): T {
  try {
    return act();
  } catch (error) {
    throw error instanceof Stop ? error : new Stop(1, `cannot ${what}: ${reason(error)}`);
  }
}

// ## Arguments, as argparse takes them: -oDIR, -o DIR, --output=DIR, --output DIR, -qf, unambiguous abbreviations, --

interface Args {
  has(name: Name): boolean;
  value(name: Name): string | undefined;
  values(name: Name): readonly string[];
  readonly operand: string | undefined;
}

/** How many letters must be added, left out, changed or swapped with the next to make one word of the other. */
function distance(a: string, b: string): number {
  const rows: number[][] = [Array.from({ length: b.length + 1 }, (_, at) => at)];
  const at = (i: number, j: number): number => rows[i]?.[j] ?? Infinity;
  for (let i = 1; i <= a.length; i += 1) {
    rows[i] = [i];
    for (let j = 1; j <= b.length; j += 1) {
      const swapped = a[i - 1] === b[j - 2] && a[i - 2] === b[j - 1];
      const changed = at(i - 1, j - 1) + (a[i - 1] === b[j - 1] ? 0 : 1);
      rows[i]?.push(Math.min(at(i - 1, j) + 1, at(i, j - 1) + 1, changed, swapped ? at(i - 2, j - 2) + 1 : Infinity));
    }
  }
  return at(a.length, b.length);
}

/** What somebody probably meant, as the end of an error message. */
function suggestion(word: string, known: readonly string[]): string {
  const near = known
    .map((name) => ({ name, steps: distance(word.toLowerCase(), name) }))
    .filter(({ name, steps }) => steps <= Math.max(1, Math.floor(name.length / 3)))
    .sort((a, b) => a.steps - b.steps);
  return near[0] ? `; did you mean ${near[0].name}?` : '';
}

/** The option that a word means, `-x` or `--long` or the beginning of one long name only. */
function lookUp(word: string, allowed: readonly Name[], command: string | undefined): Name {
  const spelled = (name: Name): boolean => {
    const { short }: Option = OPTIONS[name];
    return word === `--${name}` || word === `-${short}`;
  };
  const exact = allowed.filter(spelled);
  const found = exact.length > 0 || word.length < 3 ? exact : allowed.filter((name) => `--${name}`.startsWith(word));
  const [name] = found;
  const long = allowed.map((one) => `--${one}`);
  if (name === undefined) misuse(`unknown option ${cutOff(word)}${suggestion(word, long)}`, command);
  if (found.length > 1) misuse(`${word} could be ${found.map((one) => `--${one}`).join(' or ')}`, command);
  return name;
}

/** A file name that can be printed and that is the very one that was given. */
function checkPath(option: string, path: string): void {
  if (/^~(\/|$)/.test(path)) fail(`${option} begins with ~, which no shell has replaced: write "$HOME" instead`);
  if (option === 'MCP_KEY_FILE_PATH' && path.endsWith('\r'))
    fail(`${option} ends with a carriage return: save the file that sets it with Unix line ends`);
  // The runtime has put U+FFFD where the octets were no UTF-8: the file that it names is another one.
  if (path.includes('\ufffd'))
    fail(`${option} has octets that are no UTF-8: ${cutOff(path)}; go into that folder with cd and use -o .`);
  // C1 and what turns the direction of letters move a terminal as well; joiners are letters of some languages.
  if (/[\u0000-\u001f\u007f-\u009f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]/.test(path))
    fail(`${option} has a control character: ${cutOff(path)}; go into that folder with cd and use -o .`);
}

/** Takes the words after the command apart. Options may follow operands; only --claim may be given twice. */
function parse(words: readonly string[], command: CommandName | undefined): Args {
  const { options, operand }: Pick<Command, 'options' | 'operand'> = command ? COMMANDS[command] : { options: {} };
  const allowed = [...namesIn(COMMON), ...namesIn(options)];
  const given = new Map<Name, string[]>();
  const operands: string[] = [];
  const queue = [...words];
  for (let word = queue.shift(); word !== undefined; word = queue.shift()) {
    if (word === '--') operands.push(...queue.splice(0));
    else if (!word.startsWith('-') || word === '-') operands.push(word);
    else takeOption(word, queue, given, allowed, command);
  }
  const most = command === undefined || operand !== undefined ? 1 : 0;
  if (operands.length > most) misuse(`unexpected argument '${cutOff(operands.at(-1) ?? '')}'`, command);
  for (const path of operand === 'file' ? operands : []) checkPath('FILE', path);
  return {
    has: (name) => given.has(name),
    value: (name) => given.get(name)?.[0],
    values: (name) => given.get(name) ?? [],
    operand: operands[0],
  };
}

/** One word that is an option, with its value from the same word or the next. */
function takeOption(
  word: string,
  queue: string[],
  given: Map<Name, string[]>,
  allowed: readonly Name[],
  command: CommandName | undefined,
): void {
  const [spelling, rest] = word.startsWith('--') ? cut(word, '=') : [word.slice(0, 2), word.slice(2) || undefined];
  const name = lookUp(spelling, allowed, command);
  const { value: takes, repeats }: Option = OPTIONS[name];
  if (given.has(name) && !repeats) misuse(`${spelling} is given twice`, command);
  const values = given.get(name) ?? [];
  given.set(name, values);
  if (takes !== undefined) {
    // -o=DIR is -o DIR. A word that looks like an option is no value: more likely the value was forgotten.
    const value = (spelling.startsWith('--') ? rest : rest?.replace(/^=/, '')) ?? queue.shift();
    if (!value || (rest === undefined && value !== '-' && value.startsWith('-')))
      misuse(`${spelling} needs a value`, command);
    if (/^(DIR|FILE)/.test(takes)) checkPath(spelling, value);
    values.push(value);
  } else if (rest !== undefined) {
    if (spelling.startsWith('--') || rest.startsWith('-') || rest.startsWith('='))
      misuse(`${spelling} takes no value`, command);
    queue.unshift(`-${rest}`);
  }
}

function cut(text: string, separator: string): [string, string | undefined] {
  const at = text.indexOf(separator);
  return at < 0 ? [text, undefined] : [text.slice(0, at), text.slice(at + 1)];
}

/** One of a few words, or numbers. */
function oneOf<T extends string | number>(option: string, value: string, choices: readonly T[]): T {
  return (
    choices.find((choice) => String(choice) === value) ??
    misuse(`${option} is one of ${choices.join(', ')}, not '${cutOff(value)}'`)
  );
}

/** `90s`, `10m`, `24h`, `7d` in seconds. */
function duration(option: string, text: string): number {
  const [, amount, unit = ''] = /^([0-9]{1,9})([smhd])$/.exec(text) ?? [];
  if (amount === undefined) misuse(`${option} is a duration like 90s, 10m, 24h or 7d, not '${cutOff(text)}'`);
  return Number(amount) * ({ s: 1, m: 60, h: 3600, d: 86_400 }[unit] ?? Number.NaN);
}

/** How somebody would write a name in a shell. */
const quoted = (word: string): string => (/^[\w./@:+,=%-]+$/.test(word) ? word : `'${word.replaceAll("'", `'\\''`)}'`);

// ## Reading

const isObject = (value: unknown): value is Record<string, unknown> =>
  typeof value === 'object' && value !== null && !Array.isArray(value);
const isSet = (value: unknown): value is JwkSet =>
  isObject(value) && Array.isArray(value.keys) && value.keys.every(isObject);
const isPrivate = (jwk: Jwk): jwk is PrivateSigningJwk => 'd' in jwk;

const LIMIT = 1024 * 1024; // octets of a file: the library's limit for key files

/** JSON in UTF-8. The parser's own message would quote the text. */
function parseJson(what: string, octets: Uint8Array): unknown {
  const [first, second, third] = octets;
  const marked = first === 0xef && second === 0xbb && third === 0xbf;
  if (marked || (first === 0xff && second === 0xfe) || (first === 0xfe && second === 0xff))
    fail(`${what}: starts with a byte order mark (BOM); save it as UTF-8 without one`);
  try {
    return JSON.parse(new TextDecoder('utf-8', { fatal: true }).decode(octets));
  } catch {
    const pem = Buffer.from(octets.subarray(0, 10)).equals(Buffer.from('-----BEGIN'));
    fail(octets.length === 0 ? `${what} is empty` : `${what} is ${pem ? 'PEM; keys are taken as JWK' : 'not JSON'}`);
  }
}

/** At most `limit` octets of a file, a pipe, standard input or an HTTP body. */
async function readAll(what: string, source: AsyncIterable<Uint8Array>, limit = LIMIT): Promise<Uint8Array> {
  const chunks: Uint8Array[] = [];
  let size = 0;
  for await (const chunk of source) {
    size += chunk.length;
    if (size > limit) fail(`${what} is larger than ${limit / 1024} KiB`);
    chunks.push(chunk);
  }
  return Buffer.concat(chunks);
}

const nameOf = (file: string): string => (file === '-' ? 'standard input' : file);

async function readFile(file: string, whenMissing = ''): Promise<Uint8Array> {
  const what = nameOf(file);
  try {
    return await readAll(what, file === '-' ? process.stdin : createReadStream(file));
  } catch (error) {
    if (error instanceof Stop) throw error;
    fail(`cannot read ${what}: ${reason(error)}${codeOf(error) === 'ENOENT' ? whenMissing : ''}`);
  }
}

/**
 * A key file that is just being replaced or destroyed is zeros for a moment: a second look sees what stands there now.
 */
async function readJsonFile(file: string, whenMissing = ''): Promise<unknown> {
  const octets = await readFile(file, whenMissing);
  if (octets[0] !== 0 || file === '-') return parseJson(nameOf(file), octets);
  await sleep(100);
  return parseJson(file, await readFile(file, whenMissing));
}

/** A JWK Set, or one JWK as a set. The library checks the keys. */
function asSet(what: string, json: unknown): JwkSet {
  const set = isObject(json) && 'kty' in json && !('keys' in json) ? { keys: [json] } : json;
  return isSet(set) ? set : fail(`${what} is not a JWK Set`);
}
async function readSet(file: string): Promise<JwkSet> {
  const whenMissing = '; make keys with generate, or name their folder with -o';
  return asSet(nameOf(file), await readJsonFile(file, whenMissing));
}

/** A URL in messages: its query may be a secret. */
const placeOf = (url: URL): string => shown(url.origin + url.pathname);

const REDIRECT = 'redirects are not followed';
const WELL_KNOWN = 'servers publish their keys at /.well-known/jwks.json';

/** Fetches public keys as the library does: over https, or http on this machine only; no redirects, 5 s, 512 KiB. */
async function fetchSet(option: string, address: string): Promise<JwkSet> {
  const url = URL.canParse(address) ? new URL(address) : misuse(`${option} '${cutOff(address)}' is not a URL`);
  const loopback = /^(localhost|127(\.[0-9]{1,3}){3}|\[::1\])$/.test(url.hostname);
  if (url.protocol !== 'https:' && !(url.protocol === 'http:' && loopback))
    misuse(`${option} is https; http is for this machine only`);
  if (url.username || url.password) misuse(`${option} takes no user and password`);
  const where = placeOf(url);
  try {
    const response = await fetch(url, { redirect: 'manual', signal: AbortSignal.timeout(5000) });
    if (response.status !== 200)
      fail(`${where} answered ${response.status} instead of 200; ${response.status < 400 ? REDIRECT : WELL_KNOWN}`);
    const body = await readAll(where, response.body ?? fail(`${where} answered nothing`), 512 * 1024);
    const json = parseJson(where, body);
    if (option === '--jwks' && !isSet(json))
      fail(`${where} is not a JWK Set, and a server takes nothing else from a URL`);
    const set = asSet(where, json);
    return set.keys.some(isPrivate) ? fail(`${where} publishes a private key: that key must be replaced`) : set;
  } catch (error) {
    if (error instanceof Stop) throw error;
    fail(`cannot fetch ${where}: ${whyNoAnswer(error)}`);
  }
}

function whyNoAnswer(error: unknown): string {
  if (error instanceof Error && error.name === 'TimeoutError') return 'no complete answer within 5 seconds';
  const cause = error instanceof Error && error.cause instanceof Error ? error.cause : error;
  const code = codeOf(cause instanceof AggregateError ? cause.errors[0] : cause);
  if (code === undefined) return 'no answer';
  return REASONS[code] ?? (/CERT|TLS|SIGNATURE|SSL/.test(code) ? `its certificate is not trusted (${code})` : code);
}

// ## Files of a pair

interface Pair {
  readonly folder: string;
  readonly privateFile: string;
  readonly publicFile: string;
  /** False for a key file of another name, which has no public half beside it. */
  readonly hasPublic: boolean;
}

const within = (folder: string, name: string): string => `${folder.replace(/\/*$/, '/')}${name}`;

/** The pair's paths, as they were given: `.keys` and `./.keys/` are shown as they are. */
function pairIn(folder: string, name: 'mcp' | 'signing'): Pair {
  const [privateFile, publicFile] = [`${name}-private.json`, `${name}-public.json`];
  return {
    folder,
    privateFile: within(folder, privateFile),
    publicFile: within(folder, publicFile),
    hasPublic: true,
  };
}
const pairOf = (args: Args, name: 'mcp' | 'signing' = args.has('signing') ? 'signing' : 'mcp'): Pair =>
  pairIn(args.value('output') ?? '.keys', name);

/** The pair that a key file belongs to. */
function pairBeside(file: string): Pair {
  const name = basename(file);
  const publicFile = `${file.slice(0, file.length - name.length)}mcp-public.json`;
  return { folder: dirname(file), privateFile: file, publicFile, hasPublic: name === 'mcp-private.json' };
}

/** The key file of a command: the one given, that of the folder given, that of the environment, that of `.keys`. */
function fileOf(args: Args, given: string | undefined): string {
  const environment = args.has('output') ? undefined : process.env.MCP_KEY_FILE_PATH || undefined;
  if (given === undefined && environment !== undefined) checkPath('MCP_KEY_FILE_PATH', environment);
  return given ?? environment ?? pairOf(args, 'mcp').privateFile;
}

const look = (path: string): Stats | undefined =>
  attempt(`look for ${path}`, () => lstatSync(path, { throwIfNoEntry: false }));
const exists = (path: string): boolean => look(path) !== undefined;
const isSame = (a: Stats, b: Stats): boolean => a.dev === b.dev && a.ino === b.ino;

// What a killed run leaves is found by its name, which says whose it is. The second form, of older versions, does not.
const TEMPORARY = /^(.+)\.mcp-auth-([0-9]{1,10})-[0-9a-f]{12}\.tmp$/;
const OLD_TEMPORARY = /^((?:mcp|signing)-(?:private|public)\.json)\.[0-9a-f]{12}\.tmp$/;
const mine = new Set<string>(); // names that this run has made: a process of another container may have had its number

function temporary(path: string): string {
  const [, original = basename(path)] = TEMPORARY.exec(basename(path)) ?? OLD_TEMPORARY.exec(basename(path)) ?? [];
  const folder = path.slice(0, path.length - basename(path).length);
  const name = `${original}.mcp-auth-${process.pid}-${randomBytes(6).toString('hex')}.tmp`;
  mine.add(name);
  return folder + name;
}

function refuseSpecial(path: string): void {
  const seen = look(path);
  if (seen?.isSymbolicLink())
    fail(`${path} is a symbolic link and is not followed; name, or remove, the file that it leads to`);
  if (seen && !seen.isFile()) fail(`${path} is not a regular file; remove it yourself`);
}

/**
 * Opens a regular file to overwrite it, whatever its name leads to by now: follows no link, waits for no FIFO's other
 * end.
 */
function openRegular(path: string): number {
  refuseSpecial(path);
  const flags = constants.O_RDWR | (constants.O_NOFOLLOW ?? 0) | (constants.O_NONBLOCK ?? 0);
  let descriptor: number;
  try {
    descriptor = openSync(path, flags);
  } catch (error) {
    const isOwn = codeOf(error) === 'EACCES' && look(path)?.uid === process.geteuid?.();
    throw isOwn ? Object.assign(new Error(), { code: 'EACCES of an own file' }) : error;
  }
  if (fstatSync(descriptor).isFile()) return descriptor;
  closeSync(descriptor);
  fail(`${path} was replaced meanwhile; try again`);
}

/** What `act` does, or undefined where there is no such file (any more). */
function ifThere<T>(act: () => T): T | undefined {
  try {
    return act();
  } catch (error) {
    if (codeOf(error) === 'ENOENT') return undefined;
    throw error;
  }
}
const unlinkIfThere = (path: string): void => ifThere(() => unlinkSync(path));

const has = (codes: string): ((error: unknown) => boolean) => {
  const set = new Set(codes.split(' '));
  return (error) => set.has(codeOf(error) ?? '');
};
const isUnsupportedSync = has('EPERM EINVAL ENOTSUP EOPNOTSUPP ENOSYS ERR_ACCESS_DENIED');
const isUnsyncableFolder = has('EINVAL ENOTSUP EOPNOTSUPP ENOSYS EPERM EISDIR EACCES EBADF ERR_ACCESS_DENIED');
// Android says EACCES, Windows on exFAT EISDIR, a container's share of a FAT disk EIO.
const isUnsupportedLink = has('EACCES EISDIR EIO EPERM ENOTSUP EOPNOTSUPP ENOSYS EMLINK EXDEV ERR_ACCESS_DENIED');
const isFixedName = has('EACCES EBUSY EPERM EROFS ERR_ACCESS_DENIED'); // EBUSY: the file itself is a mount

/** Brings what was written to the disk. Node's permission model forbids it, as some file systems do. */
function sync(descriptor: number): void {
  try {
    fsyncSync(descriptor);
  } catch (error) {
    if (!isUnsupportedSync(error)) throw error;
    warn('files cannot be synced to the disk here; after a power cut look whether this change is in them');
  }
}

/**
 * Some file systems, and Windows, cannot sync a folder. A disk that fails is something else, and is not passed over.
 */
function syncFolder(folder: string): void {
  let descriptor: number | undefined;
  try {
    descriptor = openSync(folder, constants.O_RDONLY);
    fsyncSync(descriptor);
  } catch (error) {
    if (!isUnsyncableFolder(error)) throw error;
    warn(`the folder ${folder} cannot be synced to the disk here; after a power cut look whether this change is in it`);
  } finally {
    if (descriptor !== undefined) closeSync(descriptor);
  }
}

interface Made {
  readonly path: string;
  readonly descriptor: number;
}

/** A new empty file. Created with its final mode or a stricter one: at no moment can others open it. */
function createNew(path: string, mode: number): Made {
  const descriptor = openSync(path, 'wx', mode);
  const made = fstatSync(descriptor).mode & 0o777;
  if ((made & 0o600) !== 0o600) ifPossible(() => fchmodSync(descriptor, made | 0o600)); // an odd umask
  return { path, descriptor };
}

/**
 * The permissions of another file, with its access control list where cp knows them: the group's bits of such a mode
 * are not what the group may do. Where the file system allows no change, whoever calls sees it in the mode.
 */
function copyMode(from: string | undefined, mode: number, descriptor: number): void {
  let copied = false;
  if (from !== undefined)
    ifPossible(() => {
      const source = openSync(from, constants.O_RDONLY | (constants.O_NOFOLLOW ?? 0));
      const stdio: ('ignore' | number)[] = ['ignore', 'ignore', 'ignore', source, descriptor];
      const words = ['--attributes-only', '--preserve=mode', '/dev/fd/3', '/dev/fd/4'];
      try {
        copied = spawnSync('cp', words, { stdio, timeout: 10_000, killSignal: 'SIGKILL' }).status === 0;
      } finally {
        closeSync(source);
      }
    });
  if (!copied) ifPossible(() => fchmodSync(descriptor, mode & 0o777));
}

/** What a new file takes over from the one that it will replace, whose readers must stay able to read. */
interface Like {
  /** Undefined where its access control list is not to be taken over. */
  readonly path: string | undefined;
  readonly stats: Stats;
}

function likeOf(path: string): Like | undefined {
  const stats = look(path);
  return stats && { path, stats };
}

/** Its content, on the disk. */
function fill({ path, descriptor }: Made, text: string, like?: Like): void {
  try {
    const made = fstatSync(descriptor);
    const { uid, gid, mode } = like?.stats ?? made;
    if (uid !== made.uid || gid !== made.gid)
      attempt(`keep the owner of the old file (${uid}:${gid}); run this as that user, in that group, or as root`, () =>
        fchownSync(descriptor, uid, gid),
      );
    if (like && (mode & 0o777) !== (made.mode & 0o777)) copyMode(like.path, mode, descriptor);
    if (path.includes('private.json') && fstatSync(descriptor).mode & 0o077 & ~(like ? mode : 0))
      warn(
        `the file system of ${path.replace(/\.mcp-auth-.*/, '')} keeps no permissions: others may read what is in it`,
      );
    writeFileSync(descriptor, text);
    sync(descriptor);
  } finally {
    closeSync(descriptor);
  }
}

/** Puts a file under a name that must be free. */
function linkOrRename(from: string, to: string): void {
  try {
    linkSync(from, to);
  } catch (error) {
    if (!isUnsupportedLink(error)) throw error;
    if (exists(to)) throw Object.assign(new Error('exists'), { code: 'EEXIST' });
    renameSync(from, to);
    warn(`the file system of ${to} knows no hard links: a file that another program puts there meanwhile is replaced`);
  }
}

// ## Destroying

/** Whether the file holds nothing but zeros. */
function isZero(descriptor: number): boolean {
  const chunk = Buffer.alloc(64 * 1024);
  for (let at = 0, length; (length = readSync(descriptor, chunk, 0, chunk.length, at)) > 0; at += length) {
    if (chunk.subarray(0, length).some((octet) => octet !== 0)) return false;
  }
  return true;
}

function write(descriptor: number, size: number, octets: (length: number) => Uint8Array): void {
  for (let at = 0; at < size;) {
    const chunk = octets(Math.min(size - at, 64 * 1024));
    at += writeSync(descriptor, chunk, 0, chunk.length, at);
  }
  sync(descriptor);
}

/**
 * Overwrites a file in place: once here, because a shred may truncate it, then by shred where there is one, else here.
 */
function overwrite(descriptor: number): void {
  const { size } = fstatSync(descriptor);
  write(descriptor, size, randomBytes);
  // BusyBox has short options only. The descriptor is handed over, not the name: a name may lead elsewhere by now.
  const stdio: ['ignore', 'ignore', 'ignore', number] = ['ignore', 'ignore', 'ignore', descriptor];
  ifPossible(() => spawnSync('shred', ['-z', '/dev/fd/3'], { stdio, timeout: 10_000, killSignal: 'SIGKILL' }));
  // Only what is read back counts: shred may be missing, forbidden, have failed, or be something else of that name.
  if (fstatSync(descriptor).size < size || !isZero(descriptor)) write(descriptor, size, Buffer.alloc);
  sync(descriptor);
}

/**
 * Moves a file out of the way, overwrites and removes it. The name goes first: a run that is killed in between leaves
 * what the next one destroys, and no reader ever meets a key file of zeros. Throws, and leaves it under its name, when
 * it cannot be overwritten.
 * @param known `inUse`: a file of which it may be another name, where the file system's numbers do not tell: that is
 * kept. `isLinked`: whether it has other names, where their number is an old one.
 */
function destroy(path: string, known: { inUse?: string; isLinked?: boolean } = {}): void {
  const { inUse } = known;
  const descriptor = attempt(`overwrite ${path}, which is left as it is`, () => openRegular(path));
  try {
    const opened = fstatSync(descriptor);
    const doomed = moveAway(path, opened);
    const isSecondName = (name: string): boolean => readFileSync(name).equals(readFileSync(descriptor));
    if (inUse !== undefined && look(inUse)?.isFile() && ifPossible(() => isSecondName(inUse)))
      return void attempt(`remove ${path}`, () => unlinkSync(doomed ?? path));
    try {
      attempt(`overwrite ${path}, which is left where it is`, () => overwrite(descriptor));
    } catch (error) {
      if (doomed !== undefined && !exists(path)) renameSync(doomed, path);
      throw error;
    }
    if (known.isLinked ?? opened.nlink > 1)
      warn(`${path} has other names (hard links); what they name is overwritten too`);
    attempt(`remove ${doomed ?? path}, though it is overwritten`, () => unlinkSync(doomed ?? path));
  } finally {
    closeSync(descriptor);
  }
}

/** The temporary name under which a file is destroyed; undefined where the folder allows no other name. */
function moveAway(path: string, opened: Stats): string | undefined {
  const doomed = temporary(path);
  try {
    renameSync(path, doomed);
  } catch (error) {
    if (isFixedName(error)) return undefined;
    fail(`cannot move ${path} away to destroy it: ${reason(error)}; it is left as it is`);
  }
  const moved = look(doomed);
  if (moved && isSame(moved, opened)) return doomed;
  renameSync(doomed, path);
  fail(`${path} was replaced meanwhile; try again`);
}

// ## What interrupted runs leave, and runs at the same time

interface Leftover {
  readonly path: string;
  /** The name of the file that it is a temporary one of. */
  readonly original: string;
  readonly stats: Stats;
  /** Of a run under way, and its process. */
  readonly owner: number | undefined;
}

function isAlive(pid: number): boolean {
  try {
    return pid > 0 && process.kill(pid, 0);
  } catch (error) {
    return codeOf(error) === 'EPERM'; // somebody else's
  }
}

/** The temporary files of a folder that are not this run's. */
function leftoversIn(folder: string): Leftover[] {
  const names = attempt(`read the folder ${folder}`, () => ifThere(() => readdirSync(folder)) ?? []);
  return names.sort().flatMap((name) => {
    const [, original, pid] = TEMPORARY.exec(name) ?? OLD_TEMPORARY.exec(name) ?? [];
    const path = within(folder, name);
    const stats = original === undefined || mine.has(name) ? undefined : look(path);
    if (original === undefined || !stats) return [];
    const recent = Math.abs(Date.now() - stats.ctimeMs) < 60_000;
    const owner = recent && Number(pid) !== process.pid && isAlive(Number(pid ?? 0)) ? Number(pid) : undefined;
    return [{ path, original, stats, owner }];
  });
}

/**
 * Removes a stale file. A second name of a file in use, left between link and unlink, is removed and its content kept.
 */
function discard({ path, original, stats }: Leftover, folder: string, stale: readonly Leftover[]): void {
  const isStale = (name: string): boolean => stale.some((other) => other.path === name);
  const others = stats.nlink > 1 ? readdirSync(folder).map((name) => within(folder, name)) : [];
  const inUse = others.some((name) => {
    const other = isStale(name) ? undefined : look(name);
    return other !== undefined && isSame(other, stats);
  });
  try {
    if (inUse) attempt(`remove ${path}`, () => unlinkSync(path));
    else destroy(path, { inUse: within(folder, original) });
  } catch (error) {
    if (exists(path)) throw error; // else another run was faster
  }
}

/** Destroys what interrupted runs have left in a folder, and names it. Returns what was destroyed. */
function sweep(folder: string, failed: (message: string) => void): Leftover[] {
  const stale = leftoversIn(folder).filter(({ owner }) => owner === undefined);
  return stale.filter((leftover) => {
    try {
      discard(leftover, folder, stale);
      return true;
    } catch (error) {
      failed(reason(error));
      return false;
    }
  });
}

function sweepAndSay(folder: string): Leftover[] {
  const swept = sweep(folder, warn);
  for (const { path } of swept) warn(`destroyed ${path}, which an interrupted run had left`);
  if (swept.length > 0) progress.nothing = 'nothing else was changed';
  return swept;
}

/**
 * Takes the right to change a pair, by a new temporary file of which no other run has one. Two that try at the same
 * time both step back and try again; a file that is stale counts no more.
 */
async function claim({ folder, privateFile, publicFile }: Pair): Promise<Made> {
  const names = [basename(privateFile), basename(publicFile)];
  for (const end = Date.now() + 20_000; ;) {
    const made = createNew(temporary(privateFile), 0o600);
    const rival = leftoversIn(folder).find(({ original, owner }) => owner !== undefined && names.includes(original));
    if (!rival) {
      sweepAndSay(folder); // of a run that was stopped for so long that it counts no more
      return made;
    }
    abandon(made);
    if (Date.now() > end)
      fail(`another run (process ${rival.owner}) is changing the keys in ${folder}; try again when it has ended`);
    await sleep(20 + Math.random() * 80);
  }
}

function abandon({ path, descriptor }: Made): void {
  closeSync(descriptor);
  ifPossible(() => unlinkIfThere(path));
}

// ## Writing

/**
 * What a run has done, for the message when a signal ends it, and the folders that it made and that may still be
 * empty.
 */
const progress: { done: string; nothing: string; readonly folders: string[] } = {
  done: '',
  nothing: 'nothing was changed',
  folders: [],
};

/** Not with `recursive`: Node then says "no such file" of a read-only file system. */
function makeFolder(folder: string): void {
  const missing: string[] = [];
  // As it was given: the name of the folder that we are in may be no UTF-8.
  for (let path = folder; !exists(path) && path !== dirname(path); path = dirname(path)) missing.unshift(path);
  attempt(`make the folder ${folder}`, () => {
    for (const path of missing) {
      try {
        mkdirSync(path, 0o700);
        if ((statSync(path).mode & 0o700) !== 0o700) chmodSync(path, 0o700); // an odd umask
        progress.folders.unshift(path);
      } catch (error) {
        if (codeOf(error) !== 'EEXIST') throw error; // another run was faster
      }
    }
    if (!statSync(folder).isDirectory()) fail(`cannot make the folder ${folder}: file already exists`);
  });
}

/** Removes the empty folders of a run that came to nothing. */
function unmakeFolders(): void {
  for (const path of progress.folders) ifPossible(() => rmdirSync(path));
}

/** In a folder of somebody else, or that others can write to, anyone can put another key in this one's place. */
function warnOfFolder(folder: string): void {
  const { mode, uid } = statSync(folder);
  const user = process.geteuid?.();
  if (process.platform === 'win32' || user === undefined) return;
  if (mode & 0o022 && !(mode & 0o1000)) warn(`${folder} can be written to by others; chmod go-w ${quoted(folder)}`);
  if (uid !== user && uid !== 0)
    warn(`${folder} belongs to another user (${uid}), who can put another key in the place of this one`);
}

/** A small public file in the place of another, or of none. */
function rewrite(path: string, text: string, like: Like | undefined): void {
  const made = createNew(temporary(path), 0o644);
  try {
    fill(made, text, like);
    renameSync(made.path, path);
  } catch (error) {
    ifPossible(() => unlinkIfThere(made.path));
    throw error;
  }
}

const textOf = (path: string): string | undefined => ifThere(() => readFileSync(path, 'utf8'));

/** The old private key of a pair that is being replaced: how to put it back, and how to destroy it. */
interface Old {
  /** False when somebody else's file stands in the place of `ours` by now. */
  restore(ours: string): boolean;
  destroy(): void;
}

/** Gives the old key a name to destroy it by, which the next run finds should this one be killed. */
function keepOld(privateFile: string): Old | undefined {
  const old = look(privateFile);
  if (!old) return undefined;
  const name = temporary(privateFile);
  try {
    linkSync(privateFile, name);
    return {
      restore(ours) {
        const there = textOf(privateFile);
        if (there === undefined || (there !== ours && there !== textOf(name)) || !exists(name)) return false;
        renameSync(name, privateFile);
        unlinkIfThere(name); // rename() does nothing for two names of one file
        return true;
      },
      destroy: () => destroy(name, { isLinked: old.nlink > 1 }),
    };
  } catch (error) {
    if (!isUnsupportedLink(error)) throw error;
  }
  warn(
    `the file system of ${privateFile} knows no hard links: a kill at the wrong moment leaves octets of the old key`,
  );
  const descriptor = openRegular(privateFile);
  const text = readFileSync(privateFile, 'utf8');
  const like = { path: undefined, stats: fstatSync(descriptor) };
  return {
    restore(ours) {
      closeSync(descriptor);
      const there = textOf(privateFile);
      if (there === ours) rewrite(privateFile, text, like);
      return there === ours || there === text;
    },
    destroy() {
      attempt('overwrite the old private key, which has no name any more', () => overwrite(descriptor));
      closeSync(descriptor);
    },
  };
}

interface Texts {
  readonly private: string;
  /** Undefined for a key file that has no public half beside it. */
  readonly public: string | undefined;
}

/**
 * Puts a private key and its public half in place: both, or neither. The caller holds the claim `made`.
 *
 * What can fill a disk happens first, in temporary files. The private key then goes in before the public one, by
 * link(), which replaces nothing, or by rename(). With `away`, for another key in the place of the old one, the old
 * public key is moved away first: at no moment is there a public key that the private one does not fit. A set that
 * grows needs no such gap.
 */
function place(pair: Pair, made: Made, texts: Texts, away: boolean): void {
  const { folder, privateFile, publicFile } = pair;
  const [newPublic, oldPublic] = [temporary(publicFile), temporary(publicFile)];
  const undo: (() => boolean)[] = []; // each false when the file there is not this run's any more
  let old: Old | undefined;
  try {
    const like = likeOf(privateFile);
    const alone = like && away ? { path: undefined, stats: Object.assign(like.stats, { mode: 0o600 }) } : like;
    fill(made, texts.private, alone);
    if (texts.public !== undefined) fill(createNew(newPublic, 0o644), texts.public, likeOf(publicFile));
    if (away && ifThere(() => (renameSync(publicFile, oldPublic), true)))
      undo.unshift(() => !exists(publicFile) && (renameSync(oldPublic, publicFile), true));
    old = like && keepOld(privateFile); // not a key that another run has put there since
    const { restore } = old ?? {};
    if (restore) undo.unshift(() => restore(texts.private));
    (old ? renameSync : linkOrRename)(made.path, privateFile);
    if (!old) undo.unshift(() => removePlaced(privateFile, texts.private, made.path, publicFile));
    if (texts.public !== undefined) undo.unshift(placePublic(newPublic, publicFile, texts.public));
    checkPlaced(privateFile, texts.private);
    if (texts.public !== undefined) checkPlaced(publicFile, texts.public);
    syncFolder(folder);
  } catch (error) {
    const undone = attempt(`undo what was begun in ${folder}; look at it with inspect`, () =>
      undo.map((step) => step()),
    );
    ifPossible(() => exists(made.path) && destroy(made.path, { inUse: privateFile }));
    ifPossible(() => unlinkIfThere(newPublic));
    if (undone.includes(false)) fail(`another run has taken over the keys in ${folder}; look at them with inspect`);
    throw error;
  }
  finish([newPublic, oldPublic, made.path], old);
}

/** Removes a new private key again, unless another run has found it and written its public half. */
function removePlaced(privateFile: string, text: string, made: string, publicFile: string): boolean {
  if (textOf(privateFile) !== text || exists(publicFile)) return false;
  if (exists(made))
    unlinkSync(privateFile); // `made` is its other name, and is destroyed
  else destroy(privateFile);
  return true;
}

/** Returns how to undo it. */
function placePublic(from: string, publicFile: string, text: string): () => boolean {
  const like = likeOf(publicFile);
  const before = like && readFileSync(publicFile, 'utf8');
  (like ? renameSync : linkOrRename)(from, publicFile);
  return () => {
    if (textOf(publicFile) !== text) return false;
    if (before === undefined) unlinkSync(publicFile);
    else rewrite(publicFile, before, like);
    return true;
  };
}

/** A run that was stopped for more than a minute may find that another one has destroyed its files. */
function checkPlaced(path: string, text: string): void {
  if (textOf(path) !== text) fail(`${path} was changed by another program meanwhile; try again`);
}

/** The new keys are in place: removes the other names of theirs, and destroys the old key. */
function finish(temporaries: readonly string[], old: Old | undefined): void {
  const failures: string[] = [];
  const remove = (path: string): void => attempt(`remove ${path}`, () => unlinkIfThere(path));
  for (const act of [...temporaries.map((path) => () => remove(path)), () => old?.destroy()]) {
    try {
      act();
    } catch (error) {
      failures.push(reason(error));
    }
  }
  if (failures.length > 0) fail(`the new keys are in place, but ${failures.join('; ')}`);
}

// ## Keys

type Library = typeof import('./mcp-auth.ts');
const library = (): Promise<Library> => import('./mcp-auth.ts'); // only for commands that need it

const asText = (json: object): string => `${JSON.stringify(json, null, 2)}\n`;
const seconds = (): number => Math.floor(Date.now() / 1000);
const isRsa = ({ kty, use }: Jwk): boolean => kty === 'RSA' && use !== 'sig';

/** What the library says of a key set, with the set's own name in place of "JWK Set". */
function judged<T>(what: string, act: () => T): T {
  try {
    return act();
  } catch (error) {
    if (error instanceof Error && error.name === 'KeyError') fail(error.message.replace(/^(JWK Set|keys)(?=:)/, what));
    throw error;
  }
}

/** What a server with these keys would publish now. Of a public set, keys for other purposes are passed over. */
function published({ publicJwks }: Library, file: string, set: JwkSet): JwkSet {
  const isUsable = (jwk: Jwk): boolean => ifPossible(() => publicJwks({ keys: [jwk] })) !== undefined;
  const usable = set.keys.some(isPrivate) ? set.keys : set.keys.filter(isUsable);
  const active = judged(nameOf(file), () => publicJwks(usable.length > 0 ? { keys: usable } : set));
  return active.keys.length > 0
    ? active
    : fail(`every key in ${nameOf(file)} has expired; generate makes a new one, and rotate adds one`);
}

/** Every unexpired key of a private or public set as its public half with its times, the published one first. */
function publicSet(lib: Library, file: string, set: JwkSet): JwkSet {
  const [active] = published(lib, file, set).keys;
  const keys = set.keys.flatMap((jwk) => {
    const [half] = ifPossible(() => lib.publicJwks({ keys: [jwk] }))?.keys ?? [];
    const { nbf, exp } = jwk;
    return half ? [{ ...half, ...(nbf !== undefined && { nbf }), ...(exp !== undefined && { exp }) }] : [];
  });
  return { keys: [...keys.filter(({ kid }) => kid === active?.kid), ...keys.filter(({ kid }) => kid !== active?.kid)] };
}

/** The public half of an issuer's key, built from the public members. */
function signingHalf({ kty, crv, x, y, kid, alg, use }: Jwk): object {
  const key = { kty, crv: crv ?? '', x: x ?? '', ...(y !== undefined && { y }) };
  createPublicKey({ key, format: 'jwk' });
  return { keys: [{ kty, kid, alg, use, crv, x, y }] };
}

/** The text of the public file beside a private one. */
function publicText(lib: Library, file: string, privateText: string): string {
  const set = asSet(file, parseJson(file, Buffer.from(privateText)));
  const [first] = set.keys;
  return asText(set.keys.length === 1 && first && !isRsa(first) ? signingHalf(first) : publicSet(lib, file, set));
}

/** Destroys what interrupted runs have left in a folder, and writes again what they had not finished. */
async function recover(pair: Pair): Promise<void> {
  const swept = sweepAndSay(pair.folder);
  await complete(pair, swept);
  for (const name of ['mcp', 'signing'] as const) {
    const other = pairIn(pair.folder, name);
    if (other.privateFile !== pair.privateFile) await complete(other, swept);
  }
}

/** Where an interrupted run had put the private key in place and not yet its public half, writes that. */
async function complete(pair: Pair, swept: readonly Leftover[]): Promise<void> {
  const names = [basename(pair.privateFile), basename(pair.publicFile)];
  if (!pair.hasPublic || !swept.some(({ original }) => names.includes(original)) || !exists(pair.privateFile)) return;
  const lib = await library();
  const made = await claim(pair);
  try {
    for (const path of [pair.privateFile, pair.publicFile]) refuseSpecial(path); // a FIFO would be waited for
    const text = publicText(lib, pair.privateFile, readFileSync(pair.privateFile, 'utf8'));
    if (textOf(pair.publicFile) === text) return;
    rewrite(pair.publicFile, text, likeOf(pair.publicFile));
    warn(`wrote ${pair.publicFile} again, which that run had not finished`);
  } catch (error) {
    warn(`cannot write ${pair.publicFile}, which an interrupted run had not finished: ${reason(error)}`);
  } finally {
    abandon(made);
  }
}

function sayMaking(args: Args, what: string): void {
  if (process.stderr.isTTY && !args.has('quiet')) say(`making ${what} key, which can take some seconds ...`);
}

type RsaChoice = NonNullable<Parameters<Library['generateKeyPair']>[0]>;

/**
 * How to make a private key for a server, as the text of its file. Options are checked at once, keys are made later.
 */
function encryptionKey(args: Args): () => Promise<string> {
  const alg = oneOf('--alg', args.value('alg') ?? 'RSA-OAEP-256', ['RSA-OAEP-256', 'RSA-OAEP']);
  const modulusLength = oneOf('--bits', args.value('bits') ?? '4096', [2048, 3072, 4096]);
  return async () => asText({ keys: [await makeRsa(args, { alg, modulusLength })] });
}

async function makeRsa(args: Args, choice: RsaChoice): Promise<Jwk> {
  const { generateKeyPair } = await library();
  sayMaking(args, `an RSA-${choice.modulusLength}`);
  return (await generateKeyPair(choice)).privateJwk;
}

/** The same for an issuer: one JWK, as `sign.key` of encryptToken takes it. */
function signingKey(args: Args): () => Promise<string> {
  // The name of RFC 9864. Verifiers that are older know the same algorithm as EdDSA.
  const alg = oneOf('--alg', args.value('alg') ?? 'Ed25519', ['Ed25519', 'EdDSA', 'ES256']);
  if (args.has('bits')) misuse('--bits is for RSA keys, not for --signing', 'generate');
  return async () => {
    const { jwkThumbprint } = await library();
    // Through PEM: on Node 20 the JWK export of a fresh key can deadlock with the collector that frees the job which
    // made it.
    const pem = {
      publicKeyEncoding: { type: 'spki', format: 'pem' },
      privateKeyEncoding: { type: 'pkcs8', format: 'pem' },
    } as const;
    const made =
      alg === 'ES256'
        ? generateKeyPairSync('ec', { namedCurve: 'P-256', ...pem })
        : generateKeyPairSync('ed25519', pem);
    const { kty = '', ...members } = createPrivateKey(made.privateKey).export({ format: 'jwk' });
    return asText({ kty, kid: jwkThumbprint({ kty, ...members }), alg, use: 'sig', ...members });
  };
}

/** What to do instead of replacing keys that exist. */
function refuseExisting(args: Args, pair: Pair, first: string): void {
  const { folder, privateFile, publicFile } = pair;
  const [hasPrivate, hasPublic] = [exists(privateFile), exists(publicFile)];
  if (!hasPrivate && !hasPublic) return;
  // Without -o the other commands take the file that MCP_KEY_FILE_PATH names.
  const o = args.has('output') || process.env.MCP_KEY_FILE_PATH ? ` -o ${quoted(folder)}` : '';
  const steps = [
    ...(first === '' || !hasPrivate ? [] : [first]),
    ...(hasPrivate && !args.has('signing') ? [`rotate${o} adds a new key and loses no request`] : []),
    ...(hasPrivate && !hasPublic && !args.has('signing')
      ? [`public${o} --all > ${quoted(publicFile)} writes the missing public half`]
      : []),
    hasPrivate ? '-f replaces them and destroys the old private key' : '-f makes a new pair',
  ];
  const existing = [hasPrivate ? [privateFile] : [], hasPublic ? [publicFile] : []].flat();
  fail(`keys already exist: ${existing.join(', ')}; ${steps.join('; ')}`);
}

/** Makes and saves a pair. What could not be finished later is refused before seconds are spent on making a key. */
async function makePair(args: Args, pair: Pair, make: () => Promise<string>, first = ''): Promise<string> {
  const { folder, privateFile, publicFile } = pair;
  const replace = args.has('force');
  makeFolder(folder);
  warnOfFolder(folder);
  await recover(pair);
  const refuse = (): void => {
    if (!replace) refuseExisting(args, pair, first);
    for (const file of [privateFile, publicFile]) refuseSpecial(file);
    if (exists(privateFile)) attempt(`replace ${privateFile}`, () => closeSync(openRegular(privateFile)));
  };
  refuse();
  return changing(folder, async () => {
    abandon(await claim(pair));
    const text = await make();
    const lib = await library();
    const made = await claim(pair);
    try {
      refuse();
    } catch (error) {
      abandon(made);
      throw error;
    }
    place(pair, made, { private: text, public: publicText(lib, privateFile, text) }, replace);
    progress.done = `the new keys are in ${folder}`;
    return text;
  });
}

/** Turns what the system says into words, and says whether something was changed. */
async function changing<T>(folder: string, act: () => Promise<T>): Promise<T> {
  try {
    return await act();
  } catch (error) {
    if (error instanceof Stop || codeOf(error) === undefined) throw error;
    fail(`cannot write to ${folder}: ${reason(error)}; ${progress.nothing}`);
  }
}

// ## Commands that change keys

/** The line for .env. Node reads "\n" in double quotes as a line break, and shells read "$" there. */
function environmentLine(path: string): string | undefined {
  if (/^[\w./@:+,=-]+$/.test(path)) return `MCP_KEY_FILE_PATH=${path}`;
  const quotes = /[\\$`]/.test(path) ? ["'", '`', '"'] : ['"', "'", '`'];
  const quote = quotes.find((one) => !path.includes(one));
  return quote === undefined ? undefined : `MCP_KEY_FILE_PATH=${quote}${path}${quote}`;
}

/** The lines for .gitignore, for temporary files too: the folder, or the names where it is none of its own. */
function ignoreLines({ folder, privateFile, publicFile }: Pair): string[] {
  const path = normalize(isAbsolute(folder) ? relative('.', folder) : folder).replace(/[/\\]+$/, '');
  if (path !== '.' && path !== '' && !path.startsWith('..') && !isAbsolute(path))
    return [`${(process.platform === 'win32' ? path.replaceAll('\\', '/') : path).replace(/[*?[\]!#\\ ]/g, '\\$&')}/`];
  return [privateFile, publicFile].map((file) => `${basename(file)}*`);
}

async function generate(args: Args): Promise<void> {
  const signing = args.has('signing');
  const pair = pairOf(args);
  const text = await makePair(args, pair, signing ? signingKey(args) : encryptionKey(args));
  const title = signing ? 'Signing keys generated:' : 'Keys generated (JWKS format):';
  await print(`${title}\n  Private: ${pair.privateFile}\n  Public:  ${pair.publicFile}`);
  if (args.has('quiet')) return;
  const line = environmentLine(pair.privateFile);
  if (!signing)
    say(`For .env:\n  ${line ?? 'no line can name this folder, whose name has every kind of quote: rename it'}`);
  say(`For .gitignore:\n  ${ignoreLines(pair).join('\n  ')}`);
  say(`Key id (kid):\n  ${asSet(pair.privateFile, JSON.parse(text)).keys[0]?.kid}`);
}

/** Seconds in the largest units that say enough: `90 s`, `10 min`, `24 h`, `7 d`. */
function span(length: number): string {
  const [size, unit] =
    length < 120 ? [1, 's'] : length < 7200 ? [60, 'min'] : length < 172_800 ? [3600, 'h'] : [86_400, 'd'];
  return `${Math.round(length / Number(size))} ${unit}`;
}

/** A NumericDate in words: `2026-11-25 18:10:00 UTC (in 10 min)`. */
function when(time: number, now = Date.now() / 1000): string {
  const far = Math.abs(time) > 253_402_300_799; // no date of four digits
  const date = far ? String(time) : new Date(time * 1000).toISOString().slice(0, 19).replace('T', ' ');
  const length = Math.abs(time - now);
  const distant = length < 1 ? 'now' : time > now ? `in ${span(length)}` : `${span(length)} ago`;
  return far ? `${date} (beyond every calendar)` : `${date} UTC (${distant})`;
}

interface Rotation {
  readonly set: JwkSet;
  /** What happens when, in words. */
  readonly story: readonly string[];
}
const nameKey = ({ kid }: Jwk): string => cutOff(String(kid ?? '(without kid)'));

/**
 * The new key becomes active after the overlap, when every server and producer has seen it; the others expire after
 * the grace, when the last token made with them has. It stands first, so that it wins over one of the same second.
 */
function planRotation(file: string, given: JwkSet, made: Jwk, overlap: number, grace: number): Rotation {
  const now = seconds();
  const nbf = now + overlap;
  const start = (jwk: Jwk): number => jwk.nbf ?? jwk.iat ?? 0;
  const usable = given.keys.filter((jwk) => (jwk.exp ?? Infinity) > now);
  // Where no key's time has come, servers publish the first of them: that is so from now on, whatever the clock was.
  const [early] = usable.every((jwk) => start(jwk) > now) ? [...usable].sort((a, b) => start(a) - start(b)) : [];
  const old = { keys: given.keys.map((jwk) => (jwk === early ? { ...jwk, nbf: now } : jwk)) };
  // A key that would take over after this one was never published, and would push this one out again.
  const isOvertaken = (jwk: Jwk): boolean => start(jwk) > nbf;
  const shortened = old.keys.map((jwk) => ({ ...jwk, exp: Math.min(jwk.exp ?? Infinity, nbf + grace) }));
  const kept = shortened.filter((jwk) => jwk.exp > now && !isOvertaken(jwk));
  const next = Math.min(...usable.map(({ exp }) => exp ?? Infinity));
  const remedy = next === Infinity ? '' : `the next expires ${when(next)}: rotate then, or `;
  if (kept.length >= 4)
    fail(
      `${nameOf(file)} holds four keys that have not expired, and servers take no fifth; ` +
        `${remedy}revoke them all with --overlap 0s --grace 0s`,
    );
  const gone = old.keys.map((jwk, at) => {
    const why = (jwk.exp ?? Infinity) <= now ? 'had expired' : isOvertaken(jwk) ? 'was never published' : 'is revoked';
    return kept.some((one) => one === shortened[at]) ? '' : `  ${nameKey(jwk)} ${why} and is gone`;
  });
  const waits = overlap > 0 && kept.length > 0;
  // Where the last of the others expires before the overlap is over, they publish the new one then.
  const change = Math.min(nbf, Math.max(...kept.map(({ exp }) => exp)));
  const later: [time: number, what: string][] = [
    ...(waits ? [[change, 'they publish it, and producers change over'] satisfies [number, string]] : []),
    ...kept.map((jwk): [number, string] => [jwk.exp, `${nameKey(jwk)} expires, and tokens for it are refused`]),
  ];
  const story = [
    `New key ${nameKey(made)}:`,
    `  now: servers accept tokens for it as soon as they have read the new set${waits ? '' : ', and publish it'}`,
    ...later.sort(([a], [b]) => a - b).map(([time, what]) => `  ${when(time, now)}: ${what}`),
    ...gone.filter((line) => line !== ''),
  ];
  return { set: { keys: [{ ...made, iat: now, nbf }, ...kept] }, story };
}

/** Algorithm and size of the new key: what is asked for, else those of the published one, or of the newest. */
function choiceFor(args: Args, lib: Library, file: string, set: JwkSet): RsaChoice {
  if (!set.keys.some(isPrivate)) fail(`${nameOf(file)} holds public keys only; rotate needs the private ones`);
  const [active = set.keys[0]] = judged(nameOf(file), () => lib.publicJwks(set)).keys;
  const bits = Buffer.from(active?.n ?? '', 'base64url').length * 8;
  const size = bits <= 2048 ? 2048 : bits <= 3072 ? 3072 : 4096;
  if (size !== bits && !args.has('bits')) warn(`the published key has ${bits} bits; the new one has ${size}`);
  return {
    alg: oneOf('--alg', args.value('alg') ?? active?.alg ?? 'RSA-OAEP-256', ['RSA-OAEP-256', 'RSA-OAEP']),
    modulusLength: oneOf('--bits', args.value('bits') ?? String(size), [2048, 3072, 4096]),
  };
}

/** Opening a token for the key it publishes makes every check that a server makes of its keys at its start. */
async function checkSet(lib: Library, file: string, set: JwkSet): Promise<void> {
  const active = published(lib, file, set);
  try {
    await lib.compactDecrypt(await lib.encryptToken({}, active), set);
  } catch (error) {
    judged(nameOf(file), () => {
      throw error;
    });
  }
}

async function rotate(args: Args): Promise<void> {
  const overlap = duration('--overlap', args.value('overlap') ?? '10m');
  const grace = duration('--grace', args.value('grace') ?? '24h');
  const file = fileOf(args, args.operand);
  if (file === '-') guardStdout(args);
  else {
    if (look(file)?.isDirectory()) fail(`${file} is a folder; name it with -o`);
    refuseSpecial(file);
    if (pairBeside(file).hasPublic) refuseSpecial(pairBeside(file).publicFile);
    if (exists(dirname(file))) {
      warnOfFolder(dirname(file));
      await recover(pairBeside(file));
    }
  }
  const old = await readSet(file);
  const lib = await library();
  const choice = choiceFor(args, lib, file, old);
  planRotation(file, old, { kty: 'RSA' }, overlap, grace); // refuses a fifth key before one is made
  if (file !== '-') attempt(`replace ${file}`, () => closeSync(openRegular(file)));
  if (overlap < 300 && !(overlap === 0 && grace === 0))
    warn('with an overlap under 5m, producers that keep the public keys for 5 minutes may not see the new one in time');
  if (grace < 300 && !(overlap === 0 && grace === 0))
    warn('with a grace under 5m, tokens of producers that have not changed over yet are refused');
  const made = await makeRsa(args, choice);
  const { set, story } =
    file === '-' ? planRotation(file, old, made, overlap, grace) : await rotateFile(lib, file, made, [overlap, grace]);
  if (file === '-') {
    await checkSet(lib, file, set);
    await print(asText(set).trimEnd());
  } else {
    const { publicFile, hasPublic } = pairBeside(file);
    await print(`Keys rotated:\n  Private: ${file}${hasPublic ? `\n  Public:  ${publicFile}` : ''}`);
  }
  if (!args.has('quiet')) say(story.join('\n'));
}

/** Reads the file again under the claim: another run may have rotated while this one made its key. */
async function rotateFile(lib: Library, file: string, key: Jwk, times: readonly [number, number]): Promise<Rotation> {
  const pair = pairBeside(file);
  return changing(pair.folder, async () => {
    for (;;) {
      const before = await readFile(file);
      const rotation = planRotation(file, asSet(file, parseJson(file, before)), key, ...times);
      await checkSet(lib, file, rotation.set);
      const text = asText(rotation.set);
      const publicHalf = pair.hasPublic ? publicText(lib, file, text) : undefined;
      const made = await claim(pair);
      if (ifPossible(() => readFileSync(file))?.equals(before)) {
        place(pair, made, { private: text, public: publicHalf }, false);
        progress.done = `the new key is in ${file}`;
        return rotation;
      }
      abandon(made);
    }
  });
}

/** The files of a pair, the public one first: no moment leaves a public key without its private one. */
function destroyPair({ privateFile, publicFile }: Pair, failed: (message: string) => void): string[] {
  return [publicFile, privateFile].filter((file) => {
    try {
      if (!exists(file)) return false;
      destroy(file);
      return exists(file) ? fail(`${file} was replaced meanwhile; run clean again`) : true;
    } catch (error) {
      failed(reason(error));
      return false;
    }
  });
}

/** As claim() does, but at once: a folder that is read-only can still have its files overwritten. */
function claimToClean({ folder, privateFile, publicFile }: Pair): Made | undefined {
  const made = exists(folder) ? ifPossible(() => createNew(temporary(privateFile), 0o600)) : undefined;
  const names = [basename(privateFile), basename(publicFile)];
  const rival = leftoversIn(folder).find(({ original, owner }) => owner !== undefined && names.includes(original));
  if (rival && made) abandon(made);
  if (rival)
    fail(
      `another run (process ${rival.owner}) is changing the keys in ${folder}; ` +
        'nothing was destroyed, run clean again when it has ended',
    );
  return made;
}

async function clean(args: Args): Promise<number> {
  const pair = pairOf(args);
  const { folder } = pair;
  const stale = args.has('stale');
  const failures: string[] = [];
  const failed = (message: string): unknown => failures.push(message);
  const made = claimToClean(pair);
  const swept = sweep(folder, failed);
  const removed = [...swept.map(({ path }) => path), ...(stale ? [] : destroyPair(pair, failed))].sort();
  if (made) abandon(made);
  if (removed.length > 0) progress.done = `destroyed ${removed.join(', ')}`;
  if (removed.length > 0) attempt(`sync the folder ${folder}`, () => syncFolder(folder));
  for (const message of failures) say(`error: ${message}`);
  if (failures.length === 0 && removed.length === 0)
    await print(stale ? `Nothing stale found in ${folder}` : `No keys found in ${folder}`);
  if (removed.length > 0) await print(['Removed:', ...removed.map(shown)].join('\n  '));
  if (stale) for (const name of ['mcp', 'signing'] as const) await complete(pairOf(args, name), swept);
  const signing = pairOf(args, 'signing').privateFile;
  if (!args.has('signing') && !stale && !args.has('quiet') && exists(signing))
    say(`${signing} is left; clean --signing destroys it`);
  return failures.length === 0 ? 0 : 1;
}

// ## Commands that print keys and tokens

/**
 * A string in YAML. Names that Kubernetes takes can be null, a boolean, a number or a date to some parser of YAML 1.1
 * or 1.2.
 */
function yamlName(name: string): string {
  return /^[a-z]/.test(name) && !/^(null|true|false|yes|no|on|off|y|n|e[0-9]+)$/.test(name) ? name : `"${name}"`;
}

function checkNames(namespace: string, name: string): void {
  const label = '[a-z0-9]([-a-z0-9]*[a-z0-9])?'; // RFC 1123, as Kubernetes reads it
  const rule = "of lower case letters, digits and '-', beginning and ending with a letter or digit";
  if (namespace.length > 63 || !RegExp(`^${label}$`).test(namespace))
    misuse(`--namespace is a name of at most 63 characters ${rule}`, 'k8s');
  if (name.length > 253 || !RegExp(`^${label}(\\.${label})*$`).test(name))
    misuse(`--secret-name is names ${rule}, joined by '.'`, 'k8s');
}

/** The set to print: an existing one, a new one, or a new one that is saved. */
async function setForSecret(args: Args): Promise<JwkSet> {
  const from = args.value('from');
  const pair = from === undefined || from === '-' ? pairOf(args) : pairBeside(from);
  const make = encryptionKey(args);
  if (from === undefined && !args.has('ephemeral')) {
    const first = `k8s --from ${quoted(pair.privateFile)} prints them`;
    return asSet('the new key', JSON.parse(await makePair(args, pair, make, first)));
  }
  try {
    if (exists(pair.folder)) await recover(pair);
  } catch (error) {
    warn(reason(error)); // a folder that is somebody else's: nothing is needed of it here
  }
  return from === undefined ? asSet('the new key', JSON.parse(await make())) : readSet(from);
}

async function k8s(args: Args): Promise<void> {
  const namespace = args.value('namespace') ?? 'default';
  const name = args.value('secret-name') ?? 'mcp-server-keys';
  checkNames(namespace, name);
  const from = args.value('from');
  const ephemeral = args.has('ephemeral');
  if (from !== undefined && ephemeral)
    misuse('--from prints keys that exist, --ephemeral makes new ones: take one of them', 'k8s');
  if (args.has('force') && (from !== undefined || ephemeral))
    misuse('-f replaces saved keys; --from and --ephemeral save none', 'k8s');
  if (from !== undefined && (args.has('alg') || args.has('bits')))
    misuse('--alg and --bits are for new keys, and --from prints keys that exist', 'k8s');
  guardStdout(args);
  const set = await setForSecret(args);
  await checkSet(await library(), from ?? 'the new key', set);
  // Base64 and not stringData: there is nothing in it that YAML could read in another way.
  const data = Buffer.from(JSON.stringify(set)).toString('base64');
  await print(`apiVersion: v1
kind: Secret
metadata:
  name: ${yamlName(name)}
  namespace: ${yamlName(namespace)}
type: Opaque
data:
  mcp_jwks: ${data}`);
  if (args.has('quiet')) return;
  if (from === undefined && !ephemeral) say(`Keys saved in ${pairOf(args).folder}`);
  say('Apply it with: kubectl apply --server-side -f -');
  say('(without --server-side kubectl copies the private key into an annotation of the Secret)');
}

async function publicKeys(args: Args): Promise<void> {
  const file = fileOf(args, args.operand);
  const set = await readSet(file);
  const lib = await library();
  const shownSet = args.has('all') ? publicSet(lib, file, set) : published(lib, file, set);
  await print(jsonLines(shownSet).join('\n'));
}

/** The key to encrypt to. Of a set it is what a server would publish now. */
async function recipient(args: Args): Promise<JwkSet> {
  const url = args.value('url');
  if (url !== undefined) {
    const set = await fetchSet('--url', url);
    return published(await library(), placeOf(new URL(url)), set);
  }
  const file = fileOf(args, args.value('key'));
  const { publicFile, hasPublic } = pairBeside(file);
  const useHalf = !args.has('key') && hasPublic && !exists(file) && exists(publicFile);
  const used = useHalf ? publicFile : file;
  return published(await library(), used, await readSet(used));
}

/** The claims of --claims and --claim; the latter win. */
async function claimsOf(args: Args): Promise<Record<string, unknown>> {
  const claims = new Map<string, string>();
  for (const text of args.values('claim')) {
    const [name, value] = cut(text, '=');
    if (!name || value === undefined) misuse('--claim is NAME=VALUE', 'token');
    if (claims.has(name)) misuse(`--claim ${cutOff(name)} is given twice`, 'token');
    if (['exp', 'nbf', 'iat'].includes(name))
      misuse(`--claim gives text and ${name} is a number: use --claims FILE, or --ttl for exp`, 'token');
    claims.set(name, value);
  }
  const file = args.value('claims');
  const json = file === undefined ? {} : await readJsonFile(file);
  if (!isObject(json)) fail(`${nameOf(file ?? '')} is not a JSON object`);
  return { ...json, ...Object.fromEntries(claims) };
}

/** The key, issuer and audience of a signed token, which are given together or not at all. */
async function signerOf(args: Args): Promise<{ sign?: { key: PrivateSigningJwk; issuer: string; audience: string } }> {
  const [file, issuer, audience] = [args.value('sign'), args.value('issuer'), args.value('audience')];
  if (file === undefined || issuer === undefined || audience === undefined) return {};
  const [key, ...others] = (await readSet(file)).keys;
  if (key === undefined || others.length > 0 || !isPrivate(key))
    fail(`${nameOf(file)} is not one private key; make it with generate --signing`);
  return { sign: { key, issuer, audience } };
}

async function token(args: Args): Promise<void> {
  if (args.has('key') && args.has('url')) misuse('--key and --url both name the server: take one of them', 'token');
  const parts = [args.has('sign'), args.has('issuer'), args.has('audience')].filter(Boolean).length;
  if (parts > 0 && parts < 3) misuse('--sign, --issuer and --audience go together', 'token');
  const inputs = [args.value('key'), args.value('claims'), args.value('sign')].filter((file) => file === '-');
  if (inputs.length > 1) misuse('only one file can be standard input', 'token');
  const ttl = args.value('ttl');
  const expiresIn = ttl === undefined ? undefined : duration('--ttl', ttl);
  if (expiresIn === 0) misuse('--ttl is more than 0s', 'token');
  const claims = await claimsOf(args);
  if (expiresIn !== undefined && 'exp' in claims)
    misuse('--ttl and a claim exp contradict each other: take one of them', 'token');
  const signer = await signerOf(args);
  const to = await recipient(args);
  const { encryptToken } = await library();
  await print(await encryptToken(claims, to, { ...(expiresIn !== undefined && { expiresIn }), ...signer }));
}

// ## Commands that explain

type Style = 'good' | 'bad' | 'doubtful' | 'name';
const STYLES: Record<Style, string> = { good: '32', bad: '31', doubtful: '33', name: '1' };

/** Colours are for a person's terminal only. */
function paint(style: Style, text: string): string {
  const coloured = process.stdout.isTTY && !process.env.NO_COLOR && process.env.TERM !== 'dumb';
  return coloured ? `\x1b[${STYLES[style]}m${text}\x1b[0m` : text;
}
/** JSON for a terminal too: what JSON leaves as it is, such as the direction of letters, is escaped. */
const jsonLines = (json: object): string[] => JSON.stringify(json, null, 2).split('\n').map(shown);
const plural = (count: number, what: string): string => `${count} ${what}${count === 1 ? '' : 's'}`;

/** From here on, what the library warns of is collected, as a server's log would show it. */
function collectWarnings(): string[] {
  const warnings: string[] = [];
  process.removeAllListeners('warning'); // Node's own, which prints
  process.on('warning', (warning) => {
    if (codeOf(warning) !== 'MCP_AUTH_SELF_ASSERTED') warnings.push(warning.message);
  });
  return warnings;
}
const turn = (): Promise<void> => new Promise((resolve) => setImmediate(resolve));

/** The library's sentence when it refuses something, without the name that it gives the set. */
function refusal(act: () => unknown): string | undefined {
  try {
    act();
    return undefined;
  } catch (error) {
    return reason(error).replace(/^(JWK Set|keys|recipient|trustedIssuers: i): (key 1: )?/, '');
  }
}

/** What a server or a producer would say of one key, in the role that it has. */
async function keyProblem(lib: Library, jwk: Jwk, spare: () => Promise<Jwk & { public: JwkSet }>) {
  const { exp, ...others } = jwk;
  const lasting = Number.isFinite(exp) ? others : jwk; // an expired key is a state, not a fault
  if (isRsa(jwk) && isPrivate(jwk)) return refusal(() => new lib.JWETokenVerifier({ keys: { keys: [lasting] } }));
  if (isRsa(jwk)) return refusal(() => lib.publicJwks({ keys: [lasting] }));
  const { public: to, ...own } = await spare();
  if (isPrivate(jwk)) {
    const signed = lib.encryptToken({}, to, { sign: { key: jwk, issuer: 'i', audience: 'a' } });
    return signed.then(
      () => undefined,
      (error: unknown) =>
        refusal(() => {
          throw error;
        }),
    );
  }
  const trustedIssuers = [{ issuer: 'i', jwks: { keys: [lasting] }, audience: 'a' }];
  return refusal(() => new lib.JWETokenVerifier({ keys: { keys: [own] }, trustedIssuers }));
}

function sizeOf({ kty, n, crv }: Jwk): number | string {
  if (kty !== 'RSA') return String(crv ?? kty);
  const octets = Buffer.from(String(n ?? ''), 'base64url');
  return octets.length === 0 ? 0 : octets.length * 8 - Math.clz32(octets[0] ?? 0) + 24;
}

interface KeyReport {
  kid: string;
  kty: string;
  alg: string | null;
  size: number | string;
  use: string | null;
  state: 'published' | 'waiting' | 'accepted' | 'expired' | 'unusable' | 'usable';
  activeFrom: number | null;
  expires: number | null;
  problem: string | null;
}

async function reportKeys(lib: Library, set: JwkSet, active: string | undefined): Promise<KeyReport[]> {
  let made: Promise<Jwk & { public: JwkSet }> | undefined;
  const spare = (): Promise<Jwk & { public: JwkSet }> =>
    (made ??= lib
      .generateKeyPair({ modulusLength: 2048 })
      .then(({ privateJwk, publicJwk }) => ({ ...privateJwk, public: { keys: [publicJwk] } })));
  const now = Date.now() / 1000;
  const reports: KeyReport[] = [];
  for (const jwk of set.keys) {
    const { kty, alg, use, exp } = jwk;
    const start = jwk.nbf ?? jwk.iat;
    const problem = (await keyProblem(lib, jwk, spare)) ?? null;
    const kid = String(jwk.kid ?? ifPossible(() => lib.jwkThumbprint(jwk)) ?? '');
    const state = problem !== null ? 'unusable' : typeof exp === 'number' && exp <= now ? 'expired' : undefined;
    const usable = !isRsa(jwk) ? 'usable' : kid === active ? 'published' : (start ?? 0) > now ? 'waiting' : 'accepted';
    reports.push({
      kid,
      kty: String(kty),
      alg: alg === undefined ? null : String(alg),
      size: sizeOf(jwk),
      use: use === undefined ? null : String(use),
      state: state ?? usable,
      activeFrom: typeof start === 'number' ? start : null,
      expires: typeof exp === 'number' ? exp : null,
      problem,
    });
  }
  return reports;
}

interface SetReport {
  file: string;
  kind: string;
  /** Whether a server, or for a public set a producer, would take it. */
  accepted: boolean;
  refusal: string | null;
  published: string | null;
  warnings: string[];
  keys: KeyReport[];
}

async function reportSet(lib: Library, file: string, set: JwkSet): Promise<SetReport> {
  const ofServer = set.keys.some(isRsa);
  const secret = set.keys.some(isPrivate);
  const kind = ofServer
    ? secret
      ? 'private keys of a server'
      : 'public keys of a server'
    : secret
      ? "an issuer's private key, for signing"
      : "an issuer's public keys";
  const active = ifPossible(() => published(lib, file, set))?.keys[0]?.kid;
  // The file itself where there is one: a server looks at its permissions too.
  const source = file !== '-' && ifPossible(() => statSync(file))?.isFile() ? { keyFile: file } : { keys: set };
  const warnings = collectWarnings();
  const judge = (): unknown => (secret ? new lib.JWETokenVerifier(source) : published(lib, file, set));
  const verdict = ofServer ? refusal(judge) : undefined;
  const keys = await reportKeys(lib, set, active);
  const none = keys.every(({ state }) => state === 'unusable') ? 'no key of it can be used' : null;
  const refused = verdict ?? none;
  await turn(); // warnings come after the turn that they are of
  return {
    file: nameOf(file),
    kind,
    accepted: refused === null,
    refusal: refused,
    published: active ?? null,
    warnings,
    keys,
  };
}

const STATES: Record<KeyReport['state'], [Style, string]> = {
  published: ['good', 'published: producers encrypt to it'],
  accepted: ['good', 'accepted, not published'],
  waiting: ['doubtful', 'accepted, and waits to be published'],
  expired: ['bad', 'expired: tokens for it are refused'],
  unusable: ['bad', 'unusable'],
  usable: ['good', 'usable'],
};

function linesOfKey(key: KeyReport): string[] {
  const [style, words] = STATES[key.state];
  const size = typeof key.size === 'number' ? `RSA, ${key.size} bits` : `${key.kty} ${shown(key.size)}`;
  const alg = key.alg ?? (key.kty === 'RSA' && key.use !== 'sig' ? 'no alg, taken as RSA-OAEP-256' : 'no alg');
  const start = key.activeFrom !== null && key.activeFrom > Date.now() / 1000 ? 'active from' : 'active since';
  return [
    '',
    `  ${paint('name', cutOff(key.kid || '(no kid)'))}`,
    `      ${paint(style, words)}${key.problem === null ? '' : `: ${shown(key.problem)}`}`,
    `      ${size}, ${shown(alg)}${key.use === null ? '' : `, use ${shown(key.use)}`}`,
    ...(key.activeFrom === null ? [] : [`      ${start} ${when(key.activeFrom)}`]),
    `      ${key.expires === null ? 'never expires' : `expires ${when(key.expires)}`}`,
  ];
}

async function inspect(args: Args): Promise<void> {
  const file = fileOf(args, args.operand);
  const set = await readSet(file);
  const lib = await library();
  const report = await reportSet(lib, file, set);
  if (args.has('json')) return print(jsonLines(report).join('\n'));
  const who = report.kind.startsWith('public')
    ? 'a producer'
    : report.kind.startsWith("an issuer's private")
      ? 'token --sign'
      : 'a server';
  const verdict = report.accepted
    ? paint('good', `${who} takes it`)
    : `${paint('bad', `${who} refuses it`)}: ${shown(report.refusal ?? '')}`;
  const head = `${shown(report.file)}: ${report.kind}, ${plural(report.keys.length, 'key')}; ${verdict}`;
  const warnings = report.warnings.map((text) => `${paint('doubtful', 'a server warns')}: ${shown(text)}`);
  const lines = [head, ...report.keys.flatMap(linesOfKey)];
  await print([...lines, ...(warnings.length > 0 ? ['', ...warnings] : [])].join('\n'));
}

// What a server checks, in its order. Which check fails is the library's verdict; the words are the command's.
const CHECKS = [
  'form',
  'header',
  'key',
  'decryption',
  'level',
  'claims',
  'issuer',
  'signature',
  'copies',
  'times',
  'audience',
] as const;
type CheckName = (typeof CHECKS)[number];
interface Finding {
  readonly text: string;
  /** Why the check must fail, or why it has failed if it did. */
  readonly fault?: string;
  readonly doubt?: string;
  readonly skipped?: true;
}
type Findings = Partial<Record<CheckName, Finding>>;
const SUSPECTS: Record<string, readonly CheckName[]> = {
  malformed: ['form', 'header', 'key'],
  unknown_key: ['key'],
  no_key: ['key'],
  undecryptable: ['decryption'],
  signature: ['level', 'signature'],
  issuer: ['issuer'],
  claims: ['claims', 'copies', 'times'],
  unsafe_integer: ['claims'],
  cnf: ['claims'],
  expired: ['times'],
  not_yet_valid: ['times'],
  audience: ['audience'],
};

const decode = (segment: string | undefined): Buffer => Buffer.from(segment ?? '', 'base64url');
const jsonIn = (octets: Uint8Array): Record<string, unknown> | undefined => {
  const json = ifPossible((): unknown => JSON.parse(new TextDecoder('utf-8', { fatal: true }).decode(octets)));
  return isObject(json) ? json : undefined;
};
const word = (value: unknown): string =>
  cutOff(typeof value === 'string' ? value : (JSON.stringify(value) ?? 'nothing'));

function findForm(token: string): Finding {
  const segments = token.split('.');
  const text = `${plural(segments.length, 'segment')}, ${token.length} characters`;
  const [, , iv, , tag] = segments;
  const odd = segments.findIndex((segment) => decode(segment).toString('base64url') !== segment);
  if (token === '') return { text, fault: 'there is no token' };
  if (/[^\x21-\x7e]/.test(token))
    return { text, fault: 'it has a blank, a line break or another character of no token' };
  if (segments.length === 3) return { text, fault: 'three segments: a signed JWT that is not encrypted' };
  if (segments.length !== 5) return { text, fault: `${plural(segments.length, 'segment')} instead of five` };
  if (token.length > 16_384) return { text, fault: `${token.length} characters; at most 16384 are taken` };
  if (odd >= 0) return { text, fault: `segment ${odd + 1} is not canonical base64url (was the token cut or changed?)` };
  if (iv?.length !== 16) return { text, fault: `the IV has ${decode(iv).length} octets instead of 12` };
  if (tag?.length !== 22) return { text, fault: `the tag has ${decode(tag).length} octets instead of 16` };
  return { text };
}

function findHeader(header: Record<string, unknown> | undefined): Finding {
  if (!header) return { text: '', fault: 'the first segment is not a JSON object in UTF-8' };
  const { alg, enc, kid, cty } = header;
  const known = { alg, enc, ...(kid !== undefined && { kid }), ...(cty !== undefined && { cty }) };
  const text = Object.entries(known).map(([name, value]) => `${name} ${word(value)}`);
  const others = Object.keys(header).filter((name) => !(name in known));
  const all = [...text, ...(others.length > 0 ? [`also ${cutOff(others.join(', '))}`] : [])].join(', ');
  if (alg !== 'RSA-OAEP-256' && alg !== 'RSA-OAEP')
    return { text: all, fault: `alg is ${word(alg)}; servers take RSA-OAEP-256, or RSA-OAEP with a key marked so` };
  if (enc !== 'A256GCM') return { text: all, fault: `enc is ${word(enc)}; servers take A256GCM alone` };
  const banned = ['zip', 'crit'].find((name) => name in header);
  if (banned) return { text: all, fault: `${banned} is present, and refused whatever it says` };
  const untyped = ['kid', 'cty', 'typ'].find((name) => name in header && typeof header[name] !== 'string');
  if (untyped) return { text: all, fault: `${untyped} is not a string` };
  return { text: all };
}

function findKey(
  lib: Library,
  file: string,
  set: JwkSet,
  header: Record<string, unknown>,
  encryptedKey: Buffer,
): Finding {
  const now = Date.now() / 1000;
  const kidOf = (jwk: Jwk): string => String(jwk.kid ?? ifPossible(() => lib.jwkThumbprint(jwk)) ?? '');
  const usable = set.keys.filter((jwk) => (jwk.exp ?? Infinity) > now);
  const { kid, alg } = header;
  const named = kid === undefined ? usable : usable.filter((jwk) => kidOf(jwk) === kid);
  const text =
    kid === undefined ? `no kid: ${plural(usable.length, 'key')} tried` : `${word(kid)} is in ${nameOf(file)}`;
  if (usable.length === 0) return { text, fault: `every key in ${nameOf(file)} has expired` };
  const expired = set.keys.find((jwk) => kidOf(jwk) === kid);
  if (named.length === 0 && expired) return { text, fault: `${word(kid)} expired ${when(expired.exp ?? 0)}` };
  if (named.length === 0)
    return {
      text,
      fault:
        `${word(kid)} is no key of ${nameOf(file)}, which has ${cutOff(set.keys.map(kidOf).join(', '))}: ` +
        'the token is for another server, or for a key that is gone',
    };
  const algs = named.map((jwk) => jwk.alg ?? 'RSA-OAEP-256');
  if (!algs.some((one) => one === alg))
    return { text, fault: `the token's alg is ${word(alg)}, the key's ${algs.join(', ')}` };
  const sizes = named.map((jwk) => Math.ceil(Number(sizeOf(jwk)) / 8));
  if (!sizes.includes(encryptedKey.length))
    return {
      text,
      fault: `its encrypted key has ${encryptedKey.length} octets, and the key takes ${sizes.join(', ')}`,
    };
  return { text };
}

/** What makes a claims set one that no server takes, whatever the time. */
function claimsFault(claims: Record<string, unknown>, needsIssuer: boolean): string | undefined {
  const { aud } = claims;
  const isTexts = Array.isArray(aud) && aud.every((one) => typeof one === 'string');
  const numbers = ['exp', 'nbf', 'iat'].find((name) => name in claims && typeof claims[name] !== 'number');
  if (numbers) return `${numbers} is not a number`;
  const strings = ['iss', 'sub', 'jti'].find((name) => name in claims && typeof claims[name] !== 'string');
  if (strings) return `${strings} is not a string`;
  if ('aud' in claims && typeof aud !== 'string' && !isTexts) return 'aud is neither a string nor an array of strings';
  if ('cnf' in claims) return 'cnf asks for a proof of possession, which is not checked here: such tokens are refused';
  if (needsIssuer && claims.iss === undefined) return 'iss is missing, which signed tokens must have';
  return valueFault(claims);
}

/** Copies of claims in the header must be true (RFC 7519 §5.3). */
function findCopies(claims: Record<string, unknown>, header: Record<string, unknown>): Finding {
  const copied = ['iss', 'sub', 'aud'].filter((name) => name in header);
  const wrong = copied.find((name) => JSON.stringify(header[name]) !== JSON.stringify(claims[name]));
  if (copied.length === 0) return { text: 'no claim stands in the header too', skipped: true };
  const text = `${copied.join(', ')} in the header too`;
  return { text, ...(wrong !== undefined && { fault: `${wrong} in the header is not that of the claims` }) };
}

/** Values that JSON carries and that would be taken for others: large integers, and what is too deep or too much. */
function valueFault(claims: Record<string, unknown>): string | undefined {
  let nodes = 0;
  const walk = (value: unknown, depth: number, name: string): string | undefined => {
    nodes += 1;
    if (typeof value === 'number' && !Number.isFinite(value)) return `${name} holds a number beyond every range`;
    if (Number.isInteger(value) && !Number.isSafeInteger(value))
      return `${name} holds an integer beyond 2^53 - 1, which another id may be rounded to: send it as a string`;
    if (typeof value !== 'object' || value === null) return undefined;
    if (depth > 32) return `${name} is nested more than 32 levels deep`;
    for (const member of Object.values(value)) {
      const fault = walk(member, depth + 1, name);
      if (fault) return fault;
    }
    return undefined;
  };
  for (const [name, value] of Object.entries(claims)) {
    const fault = walk(value, 2, cutOff(name));
    if (fault) return fault;
  }
  return nodes >= 1000 ? `there are ${nodes + 1} values; at most 1000 are taken` : undefined;
}

function findTimes({ exp, nbf, iat }: Record<string, unknown>, needsExp: boolean): Finding {
  const now = Date.now() / 1000;
  const times = Object.entries({ iat, nbf, exp }).flatMap(([name, time]) =>
    typeof time === 'number' ? [`${name} ${when(time, now)}`] : [],
  );
  const text = times.join(', ') || 'no exp: it is good as long as its key is';
  if (needsExp && exp === undefined) return { text, fault: 'exp is missing, which signed tokens must have' };
  if (typeof exp === 'number' && now >= exp + 30) return { text, fault: `expired ${when(exp, now)}` };
  if (typeof exp === 'number' && typeof iat === 'number' && exp <= iat) return { text, fault: 'exp is not after iat' };
  for (const [name, time] of Object.entries({ nbf, iat }))
    if (typeof time === 'number' && time - 30 > now)
      return { text, fault: `${name} is ${when(time, now)}: one of the two clocks is wrong, or it was sent too early` };
  return { text };
}

function findAudience({ aud }: Record<string, unknown>, audience: string | undefined, show: boolean): Finding {
  const named: unknown[] = Array.isArray(aud) ? aud : aud === undefined ? [] : [aud];
  const listed = show ? named.map(word).join(', ') : plural(named.length, 'name');
  const names = named.length === 0 ? 'there is no aud' : `aud has ${listed}`;
  if (audience === undefined) return { text: `not asked for (--audience); ${names}`, skipped: true };
  const text = `aud names ${word(audience)}`;
  return named.includes(audience) ? { text } : { text, fault: `aud does not name ${word(audience)}: ${names}` };
}

interface Trust {
  readonly issuer: string;
  readonly jwks: JwkSet;
}

/** What the inner token must be before its issuer is looked for. */
function jwsFault(jws: readonly string[]): string | undefined {
  const header = jsonIn(decode(jws[0]));
  if (jws.length !== 3 || !header) return 'what is encrypted is not a JWT of three segments';
  if (!/^(RS256|PS256|ES256|EdDSA|Ed25519)$/.test(String(header.alg)))
    return `it is signed with alg ${word(header.alg)}; servers take RS256, PS256, ES256 and EdDSA (Ed25519)`;
  const banned = ['crit', 'cty'].find((name) => name in header);
  return banned && `the header of the signed token has ${banned}, which is refused`;
}

function findSignature(lib: Library, jws: readonly string[], trust: Trust): Finding {
  const { alg, kid } = jsonIn(decode(jws[0])) ?? {};
  const kids = trust.jwks.keys.map((jwk) => String(jwk.kid ?? ifPossible(() => lib.jwkThumbprint(jwk)) ?? ''));
  const text = `${word(alg)}${kid === undefined ? '' : `, kid ${word(kid)}`}`;
  if (kid !== undefined && !kids.includes(String(kid)))
    return { text, fault: `kid ${word(kid)} is not in the issuer's set, which has ${cutOff(kids.join(', '))}` };
  // Said only where the library refuses the signature: a key of this name is there, and does not verify it.
  return {
    text,
    doubt: `no key of the issuer that fits ${text} verifies it: it was signed by another key, or changed`,
  };
}

/** What can be said of a token with the server's keys, check by check. Faults here explain; they do not decide. */
async function examine(lib: Library, token: string, server: { file: string; set: JwkSet }, args: Args, trust?: Trust) {
  const findings: Findings = { form: findForm(token) };
  const segments = token.split('.');
  const header = jsonIn(decode(segments[0])) ?? {};
  findings.header = findHeader(jsonIn(decode(segments[0])));
  findings.key = findKey(lib, server.file, server.set, header, decode(segments[1]));
  const opened = await lib.compactDecrypt(token, server.set).catch(() => undefined);
  const changed = 'it was changed on its way, or encrypted to another key than its kid says';
  findings.decryption = opened ? { text: 'authentic' } : { text: '', fault: changed };
  if (!opened) return { findings, claims: undefined, nested: undefined };
  const nested = /^jwt$/i.test(String(header.cty ?? ''));
  const jws = nested ? Buffer.from(opened.plaintext).toString('latin1').split('.') : [];
  findings.level = findLevel(nested, trust, nested ? jwsFault(jws) : undefined);
  const claims = jsonIn(nested ? decode(jws[1]) : opened.plaintext);
  const signed = nested ? trust : undefined;
  const fault = claims ? claimsFault(claims, signed !== undefined) : 'they are not a JSON object in UTF-8';
  const claimNames = cutOff(Object.keys(claims ?? {}).join(', ')) || 'none';
  findings.claims = { text: claimNames, ...(fault !== undefined && { fault }) };
  const unsigned: Finding = { text: 'none: the claims are self-asserted', skipped: true };
  findings.issuer = signed ? findIssuer(claims ?? {}, signed, args.has('show')) : { text: 'none', skipped: true };
  findings.signature = signed ? findSignature(lib, jws, signed) : unsigned;
  findings.copies = findCopies(claims ?? {}, header);
  findings.times = findTimes(claims ?? {}, signed !== undefined);
  findings.audience = findAudience(claims ?? {}, args.value('audience'), args.has('show'));
  return { findings, claims, nested };
}

function findLevel(nested: boolean, trust: Trust | undefined, wrong: string | undefined): Finding {
  const text = nested ? 'signed and encrypted' : 'encrypted: whoever can read the public key can make it';
  if (nested === (trust !== undefined)) return { text, ...(wrong !== undefined && { fault: wrong }) };
  const fault = nested
    ? 'it is signed, and a server without trusted issuers refuses it; give --issuer, --jwks and --audience'
    : 'it is not signed (no cty JWT in its header), and a server with trusted issuers takes signed tokens only';
  return { text, fault };
}

function findIssuer({ iss }: Record<string, unknown>, { issuer }: Trust, show: boolean): Finding {
  const other = show ? `iss is ${word(iss)}` : 'iss is another';
  return { text: word(issuer), ...(iss !== issuer && { fault: `${other}; trusted is ${word(issuer)}` }) };
}

interface CheckReport {
  check: CheckName;
  result: 'ok' | 'failed' | 'skipped' | 'not reached';
  text: string;
}

/** The library's verdict decides which check failed. What it did not reach has no result. */
function reportChecks(findings: Findings, refused: { reason: string; message: string } | undefined): CheckReport[] {
  const suspects = refused === undefined ? [] : (SUSPECTS[refused.reason] ?? CHECKS);
  const failed = suspects.find((check) => findings[check]?.fault !== undefined) ?? suspects.at(-1);
  const last = failed === undefined ? CHECKS.length : CHECKS.indexOf(failed);
  return CHECKS.map((check, at) => {
    const { text = '', fault, doubt, skipped } = findings[check] ?? {};
    if (at > last) return { check, result: 'not reached', text: '' };
    if (at === last) return { check, result: 'failed', text: fault ?? doubt ?? refused?.message ?? '' };
    return { check, result: skipped ? 'skipped' : 'ok', text };
  });
}

/** The token of a file or of standard input: alone, or as it stands in an Authorization field. */
async function readToken(args: Args): Promise<string> {
  const { operand } = args;
  if (operand !== undefined && /^[\w-]+\.[\w-]*\.[\w-]*\.[\w-]*\.[\w-]*$/.test(operand))
    misuse('a token does not belong on the command line, where every process can read it: pipe it in', 'verify');
  if (operand === undefined && process.stdin.isTTY) misuse('name the file of the token, or pipe it in', 'verify');
  const octets = await readFile(operand ?? '-');
  const text = Buffer.from(octets).toString('latin1').trim();
  return text.replace(/^(?:authorization: *)?bearer +/i, '');
}

/** The issuer that the server trusts, and its keys. */
async function trustOf(args: Args): Promise<Trust | undefined> {
  const [issuer, jwks] = [args.value('issuer'), args.value('jwks')];
  if (issuer === undefined || jwks === undefined) return undefined;
  return { issuer, jwks: /^https?:/i.test(jwks) ? await fetchSet('--jwks', jwks) : await readSet(jwks) };
}

function checkVerifyOptions(args: Args): void {
  const needed = [args.has('issuer'), args.has('jwks')];
  if (needed.includes(true) && (needed.includes(false) || !args.has('audience')))
    misuse('--issuer, --jwks and --audience go together: a signed token must say that it is for this server', 'verify');
  const inputs = [args.operand ?? '-', args.value('key'), args.value('jwks')].filter((file) => file === '-');
  if (inputs.length > 1) misuse('only one file can be standard input', 'verify');
}

/** The library's own verdict, with the options that were given. */
async function verdictOf(lib: Library, token: string, file: string, set: JwkSet, args: Args, trust: Trust | undefined) {
  const audience = args.value('audience');
  const options = { keys: set, ...(audience !== undefined && { audience }), ...(trust && { trustedIssuers: [trust] }) };
  collectWarnings();
  const verifier = judged(nameOf(file), (): JWETokenVerifier => new lib.JWETokenVerifier(options));
  try {
    await verifier.authenticate(token);
    return undefined;
  } catch (error) {
    if (!(error instanceof lib.AuthError)) throw error;
    const { reason: why, status, code, message } = error;
    return { reason: String(why), status, code: String(code), message };
  }
}

const ASSUMED =
  'clockTolerance 30, no maxTokenAge, no claimsMember, no requiredClaims, no requiredScopes, no isRevoked';

async function verify(args: Args): Promise<number> {
  checkVerifyOptions(args);
  const token = await readToken(args);
  const file = fileOf(args, args.value('key'));
  const set = await readSet(file);
  const trust = await trustOf(args);
  const lib = await library();
  const refused = await verdictOf(lib, token, file, set, args, trust);
  const { findings, claims, nested } = await examine(lib, token, { file, set }, args, trust);
  const checks = reportChecks(findings, refused);
  const assumed = `${ASSUMED}, requireExp ${trust !== undefined}`;
  const accepted = refused === undefined;
  const level = nested === undefined ? null : nested ? 'signed and encrypted' : 'encrypted';
  if (args.has('json')) {
    const values = args.has('show') && claims ? { claims } : { claimNames: claims ? Object.keys(claims) : null };
    await print(jsonLines({ accepted, refused: refused ?? null, level, checks, ...values, assumed }).join('\n'));
    return accepted ? 0 : 1;
  }
  const verdict = accepted
    ? `${paint('good', 'accepted')}: a server with these options takes this token`
    : `${paint('bad', 'refused')}: a server answers ${refused.status} ${refused.code}, "${refused.message}"`;
  const made = checks.filter(({ result }) => result !== 'not reached');
  const rest = checks.slice(made.length).map(({ check }) => check);
  const values = args.has('show') && claims ? ['', ...jsonLines(claims)] : [];
  const lines = [
    verdict,
    '',
    ...made.map(lineOfCheck),
    ...(rest.length > 0 ? ['', `Not reached: ${rest.join(', ')}`] : []),
    ...values,
    '',
    `Assumed for the rest: ${assumed}`,
  ];
  await print(lines.join('\n'));
  return accepted ? 0 : 1;
}

const RESULTS: Record<CheckReport['result'], [Style | undefined, string]> = {
  ok: ['good', 'ok'],
  failed: ['bad', 'FAILED'],
  skipped: [undefined, '-'],
  'not reached': [undefined, ''],
};
function lineOfCheck({ check, result, text }: CheckReport): string {
  const [style, words] = RESULTS[result];
  const padded = words.padEnd(8);
  return `  ${style ? paint(style, padded) : padded}${check.padEnd(12)}${shown(text)}`;
}

// ## Completions

/** The options of a command, as words for a shell. */
const optionWords = (name: CommandName): string[] =>
  namesIn({ ...COMMANDS[name].options, ...COMMON }).flatMap((option) => {
    const { short }: Option = OPTIONS[option];
    return [`--${option}`, ...(short === undefined ? [] : [`-${short}`])];
  });
const commandNames = (): CommandName[] => Object.keys(COMMANDS).filter(isCommand);
const isCommand = (name: string): name is CommandName => Object.hasOwn(COMMANDS, name);
const operandWords = (name: CommandName): readonly string[] => {
  const { operand }: Command = COMMANDS[name];
  return operand === undefined || operand === 'file' ? [] : operand;
};

function bashCompletion(): string {
  const cases = commandNames().map(
    (name) => `    ${name}) words="${[...operandWords(name), ...optionWords(name)].join(' ')}" ;;`,
  );
  return `_mcp_auth_middleware() {
  local words="" word="\${COMP_WORDS[COMP_CWORD]}"
  case "\${COMP_WORDS[1]}" in
${cases.join('\n')}
  esac
  if [ "$COMP_CWORD" -eq 1 ]; then words="${commandNames().join(' ')}"; fi
  COMPREPLY=($(compgen -W "$words" -- "$word"))
}
complete -o default -F _mcp_auth_middleware ${PROGRAM}`;
}

function zshCompletion(): string {
  const cases = commandNames().map(
    (name) => `    ${name}) compadd -- ${[...operandWords(name), ...optionWords(name)].join(' ')} ;;`,
  );
  return `#compdef ${PROGRAM}
_mcp_auth_middleware() {
  if (( CURRENT == 2 )); then
    compadd -- ${commandNames().join(' ')}
    return
  fi
  case "$words[2]" in
${cases.join('\n')}
  esac
  _files
}
compdef _mcp_auth_middleware ${PROGRAM}`;
}

function fishCompletion(): string {
  const quote = (text: string): string => `'${text.replace(/['\\]/g, '\\$&')}'`;
  const lines = commandNames().flatMap((name) => {
    const command: Command = COMMANDS[name];
    const given = `-n '__fish_seen_subcommand_from ${name}'`;
    const options = { ...command.options, ...COMMON };
    return [
      `complete -c ${PROGRAM} -n __fish_use_subcommand -f -a ${name} -d ${quote(command.lines[0]?.[1] ?? '')}`,
      ...operandWords(name).map((one) => `complete -c ${PROGRAM} ${given} -f -a ${one}`),
      ...namesIn(options).map((option) => {
        const { short, value }: Option = OPTIONS[option];
        const letter = short === undefined ? '' : ` -s ${short}`;
        const words = `-l ${option}${letter}${value ? ' -r' : ''}`;
        return `complete -c ${PROGRAM} ${given} ${words} -d ${quote(options[option] ?? '')}`;
      }),
    ];
  });
  return lines.join('\n');
}

async function completion(args: Args): Promise<void> {
  const shell = oneOf('the shell', args.operand ?? '', SHELLS);
  await print({ bash: bashCompletion, zsh: zshCompletion, fish: fishCompletion }[shell]());
}

async function help({ operand }: Args): Promise<void> {
  if (operand === undefined) return print(usage().trimEnd());
  if (!isCommand(operand)) misuse(unknownCommand(operand));
  await print(usageOf(operand).trimEnd());
}
const unknownCommand = (name: string): string => `unknown command '${cutOff(name)}'${suggestion(name, commandNames())}`;

// ## Main

const RUN: Record<CommandName, (args: Args) => Promise<number | void>> = {
  generate,
  rotate,
  inspect,
  verify,
  k8s,
  public: publicKeys,
  token,
  clean,
  help,
  completion,
};
const CHANGES_KEYS: readonly CommandName[] = ['generate', 'rotate', 'k8s', 'clean'];

/** Before there is a result that would be lost. What changes files has done its work without it. */
function checkStdout(command: CommandName | undefined, operand: string | undefined): void {
  if (!isStdoutClosed()) return;
  const changes = command === 'generate' || command === 'clean' || (command === 'rotate' && operand !== '-');
  const what = 'standard output is closed, and the result would be lost';
  (changes ? warn : fail)(`${what}; send it to a file or a pipe`);
}

declare const VERSION: string | undefined; // put in by scripts/build.js

/**
 * Files are changed in one go, during which no signal is heard: what was begun is finished. Before that nothing is
 * begun but empty folders and files, which are removed.
 */
function handleSignals(): void {
  for (const signal of ['SIGINT', 'SIGTERM', 'SIGHUP'] as const) {
    process.on(signal, () => {
      if (progress.done === '') unmakeFolders();
      say(`error: interrupted by ${signal}; ${progress.done || progress.nothing}`);
      process.exit(128 + system.signals[signal]);
    });
  }
}

async function main([first, ...rest]: readonly string[]): Promise<number> {
  const command = first !== undefined && isCommand(first) ? first : undefined;
  if (first === undefined) misuse('no command');
  if (command === undefined && !first.startsWith('-')) misuse(unknownCommand(first));
  const args = command ? parse(rest, command) : parse([first, ...rest], undefined);
  checkStdout(args.has('help') || args.has('version') ? undefined : command, args.operand);
  if (args.has('help')) await print((command ? usageOf(command) : usage()).trimEnd());
  else if (args.has('version')) await print(typeof VERSION === 'string' ? VERSION : 'unbuilt');
  else if (command === undefined) misuse('the command comes before its options');
  else {
    if (CHANGES_KEYS.includes(command)) handleSignals();
    const status = (await RUN[command](args)) ?? 0;
    for (let turns = 0; turns < 2; turns += 1) await turn(); // a signal that came meanwhile is heard now
    return status;
  }
  return 0;
}

/** Says what went wrong, and undoes what came to nothing. */
function stop(error: unknown): number {
  if (progress.done === '') unmakeFolders();
  const message = error instanceof TypeError ? error.message.replace(/^[A-Z](?=[a-z]* )/, lower) : reason(error);
  const done =
    progress.done !== '' && message.startsWith('cannot write to standard output') ? `; ${progress.done}` : '';
  if (message) say(`error: ${message}${done}`);
  return error instanceof Stop ? error.status : 1;
}
const lower = (letter: string): string => letter.toLowerCase();

// A reader that has gone away is seen by print(), and nobody is left to be told about stderr.
process.stdout.on('error', () => {});
process.stderr.on('error', () => {});
// Nothing that is still open, such as a connection kept alive, holds up the end.
const leave = (status: number): unknown => process.stderr.write('', () => process.exit(status));
main(process.argv.slice(2)).catch(stop).then(leave);
