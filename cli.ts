#!/usr/bin/env node
// The command of mcp-auth-middleware: makes the keys of an MCP server, puts them into Kubernetes, destroys them. MIT licence.
//
// Results go to stdout, everything else to stderr. No secret is taken from the command line, where every process can read it,
// and none is printed but by `k8s`, whose purpose it is. Key material and what it was parsed from never enter a message.
import { spawnSync } from 'node:child_process';
import { createPrivateKey, createPublicKey, generateKeyPairSync, randomBytes, type webcrypto } from 'node:crypto';
import {
  closeSync,
  constants,
  createReadStream,
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
  rmSync,
  statSync,
  unlinkSync,
  writeFileSync,
  writeSync,
  type Stats,
} from 'node:fs';
import { basename } from 'node:path';
import { getSystemErrorMap } from 'node:util';
import type { Jwk, JwkSet, PrivateSigningJwk } from './mcp-auth.ts';

const USAGE = `usage: mcp-auth-middleware COMMAND [options]

  generate [--alg A] [--bits N] [-f]      make a key pair: DIR/mcp-private.json (0600) and DIR/mcp-public.json
  generate --signing [--alg A] [-f]       make an issuer's pair: DIR/signing-private.json and DIR/signing-public.json
  k8s [-n NAME] [-s NAME] [-f]            make a key pair and print it as a Kubernetes Secret
  k8s --from FILE|-                       print the Secret of an existing private key set
  k8s --ephemeral                         print the Secret of a new pair and leave nothing on disk
  public [FILE|-] [--all]                 print the public key a server would publish now
  token [--claim K=V]... [--ttl T]        print a token for trying a server out
  clean [--signing]                       destroy the pair: overwrite, then remove

Every command:
  -o, --output DIR        folder of the keys (default: .keys)
  -q, --quiet             no hints on stderr, only errors and warnings
  -h, --help              print this and exit
  -V, --version           print the version and exit

generate:
      --alg A             RSA-OAEP-256 (default) or RSA-OAEP; with --signing Ed25519 (default) or ES256
      --bits N            RSA modulus length: 2048, 3072 or 4096 (default)
  -f, --force             replace existing keys, destroying the old private key (k8s too)

k8s:
  -n, --namespace NAME    namespace of the Secret (default: default)
  -s, --secret-name NAME  name of the Secret (default: mcp-server-keys); its key is mcp_jwks
      --show              print it even when stdout is a terminal

public:
      --all               every key that has not expired, not only the active one

token:
      --key FILE          key set of the server, public or private (default: the keys in DIR)
      --url URL           fetch the server's JWK Set instead (https; http on this machine only)
      --claim K=V         a claim whose value is the text V; may be repeated
      --claims FILE|-     claims as a JSON object
      --ttl T             lifetime: 90s, 10m, 24h, 7d (default: 1h)
      --sign FILE         sign with an issuer's private key before encrypting; needs --issuer and --audience
      --issuer I          claim iss of a signed token
      --audience A        claim aud of a signed token

FILE may be - for standard input. Exit status: 0 done, 1 failed, 2 usage.
`;

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
function misuse(message: string): never {
  throw new Stop(2, `${message}\nsee mcp-auth-middleware --help`);
}

const say = (line: string): unknown => process.stderr.write(`${line}\n`);
const warn = (message: string): unknown => say(`warning: ${message}`);

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

function codeOf(error: unknown): string | undefined {
  return error instanceof Error && 'code' in error && typeof error.code === 'string' ? error.code : undefined;
}

/** The system's own words ("permission denied"), without the code, the call and the path that Node wraps around them. */
function reason(error: unknown): string {
  if (!(error instanceof Error)) return String(error);
  const errno = 'errno' in error && typeof error.errno === 'number' ? error.errno : 0;
  return getSystemErrorMap().get(errno)?.[1] ?? error.message;
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

interface Option {
  readonly short?: string;
  readonly takes?: 'value' | 'values';
}
const OPTIONS = {
  output: { short: 'o', takes: 'value' },
  quiet: { short: 'q' },
  help: { short: 'h' },
  version: { short: 'V' },
  alg: { takes: 'value' },
  bits: { takes: 'value' },
  force: { short: 'f' },
  signing: {},
  namespace: { short: 'n', takes: 'value' },
  'secret-name': { short: 's', takes: 'value' },
  from: { takes: 'value' },
  ephemeral: {},
  show: {},
  all: {},
  key: { takes: 'value' },
  url: { takes: 'value' },
  claim: { takes: 'values' },
  claims: { takes: 'value' },
  ttl: { takes: 'value' },
  sign: { takes: 'value' },
  issuer: { takes: 'value' },
  audience: { takes: 'value' },
} as const satisfies Record<string, Option>;
type Name = keyof typeof OPTIONS;
const COMMON: readonly Name[] = ['output', 'quiet', 'help', 'version'];

interface Args {
  has(name: Name): boolean;
  value(name: Name): string | undefined;
  values(name: Name): readonly string[];
  readonly operand: string | undefined;
}

/** The option that a word means, `-x` or `--long` or the beginning of one long name only. */
function lookUp(word: string, allowed: readonly Name[]): Name {
  const spelled = (name: Name): boolean => {
    const { short }: Option = OPTIONS[name];
    return word === `--${name}` || word === `-${short}`;
  };
  const exact = allowed.filter(spelled);
  const found = exact.length > 0 || word.length < 3 ? exact : allowed.filter((name) => `--${name}`.startsWith(word));
  const [name] = found;
  if (name === undefined) misuse(`unknown option ${word}`);
  if (found.length > 1) misuse(`${word} could be ${found.map((one) => `--${one}`).join(' or ')}`);
  return name;
}

/** Takes the words after the command apart. Options may follow operands; only --claim may be given twice. */
function parse(words: readonly string[], allowed: readonly Name[], mayHaveOperand: boolean): Args {
  const given = new Map<Name, string[]>();
  const operands: string[] = [];
  const queue = [...words];
  for (let word = queue.shift(); word !== undefined; word = queue.shift()) {
    if (word === '--') {
      operands.push(...queue.splice(0));
    } else if (!word.startsWith('-') || word === '-') {
      operands.push(word);
    } else {
      const [option, rest] = word.startsWith('--') ? cut(word, '=') : [word.slice(0, 2), word.slice(2) || undefined];
      const name = lookUp(option, allowed);
      const { takes }: Option = OPTIONS[name];
      if (given.has(name) && takes !== 'values') misuse(`${option} is given twice`);
      const values = given.get(name) ?? [];
      given.set(name, values);
      if (takes) {
        // -o=DIR is -o DIR. A word that looks like an option is no value: more likely the value was forgotten.
        const value = (option.startsWith('--') ? rest : rest?.replace(/^=/, '')) ?? queue.shift();
        if (!value || (rest === undefined && value !== '-' && value.startsWith('-'))) misuse(`${option} needs a value`);
        values.push(value);
      } else if (rest !== undefined) {
        if (option.startsWith('--') || rest.startsWith('-') || rest.startsWith('=')) misuse(`${option} takes no value`);
        queue.unshift(`-${rest}`);
      }
    }
  }
  if (operands.length > (mayHaveOperand ? 1 : 0)) misuse(`unexpected argument '${operands.at(-1)}'`);
  return {
    has: (name) => given.has(name),
    value: (name) => given.get(name)?.[0],
    values: (name) => given.get(name) ?? [],
    operand: operands[0],
  };
}

function cut(text: string, separator: string): [string, string | undefined] {
  const at = text.indexOf(separator);
  return at < 0 ? [text, undefined] : [text.slice(0, at), text.slice(at + 1)];
}

/** One of a few words, or numbers. */
function oneOf<T extends string | number>(option: string, value: string, choices: readonly T[]): T {
  return (
    choices.find((choice) => String(choice) === value) ??
    misuse(`${option} is one of ${choices.join(', ')}, not '${value}'`)
  );
}

/** `90s`, `10m`, `24h`, `7d` in seconds. */
function duration(option: string, text: string): number {
  const [, amount, unit = ''] = /^([0-9]{1,9})([smhd])$/.exec(text) ?? [];
  if (amount === undefined) misuse(`${option} is a duration like 90s, 10m, 24h or 7d, not '${text}'`);
  return Number(amount) * ({ s: 1, m: 60, h: 3600, d: 86_400 }[unit] ?? Number.NaN);
}

// ## Reading

const isObject = (value: unknown): value is Record<string, unknown> =>
  typeof value === 'object' && value !== null && !Array.isArray(value);
const isSet = (value: unknown): value is JwkSet =>
  isObject(value) && Array.isArray(value.keys) && value.keys.every(isObject);
const isPrivate = (jwk: Jwk): jwk is PrivateSigningJwk => 'd' in jwk;

/** At most `limit` octets of a file, a pipe, standard input or an HTTP body, as JSON. The parser's message would quote them. */
async function readJson(what: string, source: AsyncIterable<Uint8Array>, limit = 1024 * 1024): Promise<unknown> {
  const chunks: Uint8Array[] = [];
  let size = 0;
  for await (const chunk of source) {
    size += chunk.length;
    if (size > limit) fail(`${what} is larger than ${limit / 1024} KiB`);
    chunks.push(chunk);
  }
  try {
    return JSON.parse(new TextDecoder('utf-8', { fatal: true }).decode(Buffer.concat(chunks)));
  } catch {
    fail(`${what} is not JSON`);
  }
}

async function readJsonFile(file: string, whenMissing = ''): Promise<unknown> {
  const what = file === '-' ? 'standard input' : file;
  try {
    return await readJson(what, file === '-' ? process.stdin : createReadStream(file));
  } catch (error) {
    if (error instanceof Stop) throw error;
    fail(`cannot read ${what}: ${reason(error)}${codeOf(error) === 'ENOENT' ? whenMissing : ''}`);
  }
}

/** A JWK Set, or one JWK as a set. The library checks the keys. */
function asSet(what: string, json: unknown): JwkSet {
  const set = isObject(json) && 'kty' in json ? { keys: [json] } : json;
  return isSet(set) ? set : fail(`${what} is not a JWK Set`);
}
async function readSet(file: string): Promise<JwkSet> {
  return asSet(file, await readJsonFile(file, '; make keys with generate, or name their folder with -o'));
}

/** Fetches a server's public keys: over https, or http on this machine only; no redirects, 5 s, 64 KiB. */
async function fetchSet(address: string): Promise<JwkSet> {
  const url = URL.canParse(address) ? new URL(address) : misuse(`--url '${address}' is not a URL`);
  const loopback = /^(localhost|127(\.[0-9]{1,3}){3}|\[::1\])$/.test(url.hostname);
  if (url.protocol !== 'https:' && !(url.protocol === 'http:' && loopback))
    misuse('--url is https; http is for this machine only');
  if (url.username || url.password) misuse('--url takes no user and password');
  const where = url.origin + url.pathname;
  try {
    const response = await fetch(url, { redirect: 'manual', signal: AbortSignal.timeout(5000) });
    if (response.status !== 200)
      fail(`${where} answered ${response.status} instead of 200; redirects are not followed`);
    const set = asSet(where, await readJson(where, response.body ?? fail(`${where} answered nothing`), 64 * 1024));
    return set.keys.some(isPrivate) ? fail(`${where} publishes a private key: that key must be replaced`) : set;
  } catch (error) {
    if (error instanceof Stop) throw error;
    const cause = error instanceof Error && error.cause instanceof Error ? error.cause : error;
    fail(`cannot fetch ${where}: ${reason(cause instanceof AggregateError ? cause.errors[0] : cause)}`);
  }
}

// ## Files of a pair

interface Pair {
  readonly folder: string;
  readonly privateFile: string;
  readonly publicFile: string;
}

/** The pair's paths, as they were given: `.keys` and `./.keys/` are shown as they are. */
function pairOf(args: Args, name = args.has('signing') ? 'signing' : 'mcp'): Pair {
  const folder = args.value('output') ?? '.keys';
  const prefix = `${folder.replace(/\/*$/, '/')}${name}`;
  return { folder, privateFile: `${prefix}-private.json`, publicFile: `${prefix}-public.json` };
}

const look = (path: string): Stats | undefined =>
  attempt(`look for ${path}`, () => lstatSync(path, { throwIfNoEntry: false }));
const exists = (path: string): boolean => look(path) !== undefined;

const SUFFIX = /\.[0-9a-f]{12}\.tmp$/; // of what a killed run leaves, for `clean` to find
const temporary = (path: string): string => `${path.replace(SUFFIX, '')}.${randomBytes(6).toString('hex')}.tmp`;

function refuseSpecial(path: string): void {
  const seen = look(path);
  if (seen?.isSymbolicLink())
    fail(`${path} is a symbolic link and is not followed; remove it, and what it leads to, yourself`);
  if (seen && !seen.isFile()) fail(`${path} is not a regular file; remove it yourself`);
}

/** Opens a regular file to overwrite it, whatever its name leads to by now: follows no link, waits for no FIFO's other end. */
function openRegular(path: string): number {
  refuseSpecial(path);
  const descriptor = openSync(path, constants.O_RDWR | constants.O_NOFOLLOW | constants.O_NONBLOCK);
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

function sync(path: string): void {
  const descriptor = openSync(path, constants.O_RDONLY);
  try {
    fsyncSync(descriptor);
  } finally {
    closeSync(descriptor);
  }
}

/** A new file with its data on the disk. Created with its final mode, so that there is no moment at which others can open it. */
function writeNew(path: string, text: string, mode: number): void {
  const descriptor = openSync(path, 'wx', mode);
  try {
    writeFileSync(descriptor, text);
    fsyncSync(descriptor);
  } finally {
    closeSync(descriptor);
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

/** Overwrites a file in place: by shred where there is one, else here. */
function overwrite(descriptor: number): void {
  // BusyBox has short options only. The descriptor is handed over, not the name: a name may lead elsewhere by now.
  spawnSync('shred', ['-z', '/dev/fd/3'], { stdio: ['ignore', 'ignore', 'ignore', descriptor], timeout: 60_000 });
  const { size } = fstatSync(descriptor);
  // Only what is read back counts: shred may be missing, have failed, or be something else of that name.
  for (const fill of isZero(descriptor) ? [] : [randomBytes, Buffer.alloc]) {
    for (let at = 0; at < size;) {
      const chunk = fill(Math.min(size - at, 64 * 1024));
      at += writeSync(descriptor, chunk, 0, chunk.length, at);
    }
    fsyncSync(descriptor);
  }
  fsyncSync(descriptor);
}

/** Overwrites a file, then removes its name. Throws, and leaves the file where it is, when it cannot be overwritten. */
function destroy(path: string): void {
  const descriptor = attempt(`overwrite ${path}, which is left as it is`, () => openRegular(path));
  try {
    const { dev, ino, nlink } = fstatSync(descriptor);
    attempt(`overwrite ${path}, which is left where it is`, () => overwrite(descriptor));
    if (nlink > 1) warn(`${path.replace(SUFFIX, '')} has other names (hard links); what they name is overwritten too`);
    attempt(`remove ${path}, though it is overwritten`, () => {
      const doomed = temporary(path);
      renameSync(path, doomed);
      const last = lstatSync(doomed);
      if (last.dev === dev && last.ino === ino) return unlinkSync(doomed);
      renameSync(doomed, path);
      fail(`${path} was replaced meanwhile; run clean again`);
    });
  } finally {
    closeSync(descriptor);
  }
}

// ## Writing

type Exported = webcrypto.JsonWebKey & { kid?: string };

/** The public half of a private JWK or JWK Set, as a set: built from the public keys, never by deleting private members. */
function publicHalf(privateText: string): string {
  const parsed: Exported & { keys?: Exported[] } = JSON.parse(privateText); // what this command wrote
  const keys = (parsed.keys ?? [parsed]).map((jwk) => {
    const { kty, ...members } = createPublicKey({ key: jwk, format: 'jwk' }).export({ format: 'jwk' });
    return { kty, kid: jwk.kid, alg: jwk.alg, use: jwk.use, ...members };
  });
  return asText({ keys });
}
const asText = (json: object): string => `${JSON.stringify(json, null, 2)}\n`;

/** Refuses what could not be finished later, before seconds are spent on making a key. */
function prepare({ folder, privateFile, publicFile }: Pair, replace: boolean, instead: string): void {
  attempt(`make the folder ${folder}`, () => mkdirSync(folder, { recursive: true, mode: 0o700 }));
  const existing = [privateFile, publicFile].filter(exists);
  if (!replace && existing.length > 0) fail(`keys already exist: ${existing.join(', ')}; ${instead}`);
  for (const file of existing) refuseSpecial(file);
  if (exists(privateFile)) attempt(`replace ${privateFile}`, () => closeSync(openRegular(privateFile)));
  // In a shared folder without the sticky bit anyone can put another key in this one's place.
  const { mode } = statSync(folder);
  if (mode & 0o022 && !(mode & 0o1000)) warn(`${folder} can be written to by others; chmod go-w ${folder}`);
}

/**
 * Puts a private key and its public half in place: both, or neither.
 *
 * What can fill a disk happens first, in temporary files. The private key then goes in before the public one, by link(), which
 * replaces nothing: a crash in between loses no key, and `public` prints the missing half. When keys are replaced, the old
 * public key is moved away first: at no moment is there a public key that is not the private one's.
 */
function writePair(pair: Pair, privateText: string, replace: boolean): void {
  const { folder, privateFile, publicFile } = pair;
  const newPrivate = temporary(privateFile);
  const newPublic = temporary(publicFile);
  const oldPrivate = temporary(privateFile); // a name to destroy it by, which `clean` finds should this run crash
  const oldPublic = temporary(publicFile);
  const undo: (() => void)[] = [];
  try {
    writeNew(newPrivate, privateText, 0o600);
    writeNew(newPublic, publicHalf(privateText), 0o644);
    if (replace && ifThere(() => (renameSync(publicFile, oldPublic), true)))
      undo.unshift(() => renameSync(oldPublic, publicFile));
    const old = replace && exists(privateFile);
    if (old) linkSync(privateFile, oldPrivate);
    (old ? renameSync : linkSync)(newPrivate, privateFile);
    undo.unshift(() => (old ? renameSync(oldPrivate, privateFile) : unlinkSync(privateFile)));
    (replace ? renameSync : linkSync)(newPublic, publicFile);
    undo.unshift(() => unlinkSync(publicFile));
    sync(folder);
  } catch (error) {
    attempt(`put the old keys in ${folder} back, which are named *.tmp now`, () => undo.forEach((step) => step()));
    rmSync(oldPrivate, { force: true });
    throw error;
  } finally {
    for (const file of [newPrivate, newPublic, oldPublic])
      attempt(`remove ${file}`, () => rmSync(file, { force: true }));
  }
  if (replace) settle(pair);
  if (!exists(oldPrivate)) return;
  try {
    destroy(oldPrivate);
  } catch (error) {
    fail(`the new keys are in place, but ${reason(error)}`);
  }
}

/** Of two runs that replace the same keys, the one that ends last leaves a public half that is the private key's. */
function settle({ privateFile, publicFile }: Pair): void {
  for (;;) {
    const text = publicHalf(readFileSync(privateFile, 'utf8'));
    if (ifThere(() => readFileSync(publicFile, 'utf8')) === text) return;
    const file = temporary(publicFile);
    writeNew(file, text, 0o644);
    renameSync(file, publicFile);
  }
}

// ## Commands

const library = (): Promise<typeof import('./mcp-auth.ts')> => import('./mcp-auth.ts'); // only for commands that need it

/** What a server with these keys would publish now. */
async function published(file: string, set: JwkSet): Promise<JwkSet> {
  const { publicJwks } = await library();
  const active = publicJwks(set);
  return active.keys.length > 0 ? active : fail(`every key in ${file} has expired; generate makes a new one`);
}

/** How to make a private key for a server, as the text of its file. Options are checked at once, keys are made later. */
function encryptionKey(args: Args): () => Promise<string> {
  const alg = oneOf('--alg', args.value('alg') ?? 'RSA-OAEP-256', ['RSA-OAEP-256', 'RSA-OAEP']);
  const modulusLength = oneOf('--bits', args.value('bits') ?? '4096', [2048, 3072, 4096]);
  return async () => {
    const { generateKeyPair } = await library();
    return asText({ keys: [(await generateKeyPair({ modulusLength, alg })).privateJwk] });
  };
}

/** The same for an issuer: one JWK, as `sign.key` of encryptToken takes it. */
function signingKey(args: Args): () => Promise<string> {
  const alg = oneOf('--alg', args.value('alg') ?? 'Ed25519', ['Ed25519', 'ES256']);
  if (args.has('bits')) misuse('--bits is for RSA keys, not for --signing');
  return async () => {
    const { jwkThumbprint } = await library();
    // Through PEM: on Node 20 the JWK export of a fresh key can deadlock with the collector that frees the job which made it.
    const pem = {
      publicKeyEncoding: { type: 'spki', format: 'pem' },
      privateKeyEncoding: { type: 'pkcs8', format: 'pem' },
    } as const;
    const made =
      alg === 'ES256'
        ? generateKeyPairSync('ec', { namedCurve: 'P-256', ...pem })
        : generateKeyPairSync('ed25519', pem);
    const privateKey = createPrivateKey(made.privateKey);
    // "EdDSA" is what every verifier knows; its RFC 9864 name "Ed25519" is newer than most of them.
    const { kty = '', ...members } = privateKey.export({ format: 'jwk' });
    return asText({
      kty,
      kid: jwkThumbprint({ kty, ...members }),
      alg: alg === 'ES256' ? alg : 'EdDSA',
      use: 'sig',
      ...members,
    });
  };
}

/** Makes and saves a pair; `instead` says what to do when there are keys already. */
async function makePair(args: Args, make: () => Promise<string>, instead: string): Promise<string> {
  const pair = pairOf(args);
  const replace = args.has('force');
  prepare(pair, replace, instead);
  const text = await make();
  try {
    writePair(pair, text, replace);
  } catch (error) {
    if (codeOf(error) === 'EEXIST') prepare(pair, replace, instead); // another run was faster
    throw error instanceof Stop
      ? error
      : new Stop(1, `cannot write to ${pair.folder}: ${reason(error)}; nothing was changed`);
  }
  return text;
}

async function generate(args: Args): Promise<void> {
  const signing = args.has('signing');
  const { folder, privateFile, publicFile } = pairOf(args);
  await makePair(
    args,
    signing ? signingKey(args) : encryptionKey(args),
    '-f replaces them and destroys the old private key',
  );
  const title = signing ? 'Signing keys generated:' : 'Keys generated (JWKS format):';
  await print(`${title}\n  Private: ${privateFile}\n  Public:  ${publicFile}`);
  if (args.has('quiet')) return;
  const value = /^[\w./@:+-]+$/.test(privateFile) ? privateFile : `'${privateFile}'`;
  if (!signing) say(`For .env:\n  MCP_KEY_FILE_PATH=${value}`);
  say(`For .gitignore:\n  ${/^\.?[\w-]+$/.test(folder) ? `${folder}/` : basename(privateFile)}`);
}

/** A string in YAML. Names that Kubernetes takes can be null, a boolean, a number or a date to some parser of YAML 1.1 or 1.2. */
function yamlName(name: string): string {
  return /^[a-z]/.test(name) && !/^(null|true|false|yes|no|on|off|y|n|e[0-9]+)$/.test(name) ? name : `"${name}"`;
}

async function k8s(args: Args): Promise<void> {
  const namespace = args.value('namespace') ?? 'default';
  const name = args.value('secret-name') ?? 'mcp-server-keys';
  const label = '[a-z0-9]([-a-z0-9]*[a-z0-9])?'; // RFC 1123, as Kubernetes reads it
  const rule = "of lower case letters, digits and '-', beginning and ending with a letter or digit";
  if (namespace.length > 63 || !RegExp(`^${label}$`).test(namespace))
    misuse(`--namespace is a name of at most 63 characters ${rule}`);
  if (name.length > 253 || !RegExp(`^${label}(\\.${label})*$`).test(name))
    misuse(`--secret-name is names ${rule}, joined by '.'`);
  const from = args.value('from');
  const ephemeral = args.has('ephemeral');
  if (from !== undefined && ephemeral)
    misuse('--from prints keys that exist, --ephemeral makes new ones: take one of them');
  if (args.has('force') && (from !== undefined || ephemeral))
    misuse('-f replaces saved keys; --from and --ephemeral save none');
  // A terminal keeps what it has shown, and somebody may be looking.
  if (process.stdout.isTTY && !args.has('show')) fail('this prints a private key: pipe it to kubectl, or add --show');

  const instead = `print them with --from ${pairOf(args).privateFile}, or -f replaces them and destroys the old private key`;
  const make = encryptionKey(args);
  const set =
    from === undefined
      ? asSet('the new key', JSON.parse(await (ephemeral ? make() : makePair(args, make, instead))))
      : await readSet(from);
  // Opening a token for the key it publishes makes every check that a server makes of its keys at its start.
  const { compactDecrypt, encryptToken } = await library();
  await compactDecrypt(await encryptToken({}, await published(from ?? 'the new key', set)), set);
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
  const file = args.operand ?? pairOf(args).privateFile;
  const set = await readSet(file);
  const active = await published(file, set);
  const { publicJwks } = await library();
  // Alone in a set, each key that has not expired is the active one.
  const keys = args.has('all') ? set.keys.flatMap((jwk) => publicJwks({ keys: [jwk] }).keys) : active.keys;
  await print(JSON.stringify({ keys }, null, 2));
}

/** The key to encrypt to. Of a private set it is what the server would publish now. */
async function recipient(args: Args): Promise<JwkSet> {
  const url = args.value('url');
  if (url !== undefined) return fetchSet(url);
  const { privateFile, publicFile } = pairOf(args);
  const file = args.value('key') ?? (exists(privateFile) || !exists(publicFile) ? privateFile : publicFile);
  return published(file, await readSet(file));
}

/** The claims of --claims and --claim; the latter win. */
async function claimsOf(args: Args): Promise<Record<string, unknown>> {
  const claims = new Map<string, string>();
  for (const text of args.values('claim')) {
    const [name, value] = cut(text, '=');
    if (!name || value === undefined) misuse('--claim is NAME=VALUE');
    if (claims.has(name)) misuse(`--claim ${name} is given twice`);
    if (['exp', 'nbf', 'iat'].includes(name))
      misuse(`--claim gives text and ${name} is a number: use --claims FILE, or --ttl for exp`);
    claims.set(name, value);
  }
  const file = args.value('claims');
  const json = file === undefined ? {} : await readJsonFile(file);
  if (!isObject(json)) fail(`${file} is not a JSON object`);
  return { ...json, ...Object.fromEntries(claims) };
}

async function token(args: Args): Promise<void> {
  if (args.has('key') && args.has('url')) misuse('--key and --url both name the server: take one of them');
  const signer = args.value('sign');
  const [issuer, audience] = [args.value('issuer'), args.value('audience')];
  const parts = [signer, issuer, audience].filter((value) => value !== undefined).length;
  if (parts > 0 && parts < 3) misuse('--sign, --issuer and --audience go together');
  const inputs = [args.value('key'), args.value('claims'), signer].filter((file) => file === '-');
  if (inputs.length > 1) misuse('only one file can be standard input');
  const expiresIn = args.has('ttl') ? duration('--ttl', args.value('ttl') ?? '') : undefined;
  if (expiresIn === 0) misuse('--ttl is more than 0s');

  const claims = await claimsOf(args);
  if (expiresIn !== undefined && 'exp' in claims)
    misuse('--ttl and a claim exp contradict each other: take one of them');
  const to = await recipient(args);
  const { encryptToken } = await library();
  if (signer === undefined || issuer === undefined || audience === undefined) {
    return print(await encryptToken(claims, to, expiresIn === undefined ? {} : { expiresIn }));
  }
  const [key, ...others] = (await readSet(signer)).keys;
  if (key === undefined || others.length > 0 || !isPrivate(key))
    fail(`${signer} is not one private key; make it with generate --signing`);
  await print(
    await encryptToken(claims, to, {
      ...(expiresIn === undefined ? {} : { expiresIn }),
      sign: { key, issuer, audience },
    }),
  );
}

async function clean(args: Args): Promise<number> {
  const { folder, privateFile, publicFile } = pairOf(args);
  const names = [privateFile, publicFile].map((file) => basename(file));
  const isOurs = (name: string): boolean => names.includes(name.replace(SUFFIX, ''));
  const entries = exists(folder) ? attempt(`read the folder ${folder}`, () => readdirSync(folder)) : [];
  const removed: string[] = [];
  const found = entries
    .filter(isOurs)
    .sort()
    .map((name) => folder.replace(/\/*$/, '/') + name);
  for (const file of found) {
    try {
      destroy(file);
      removed.push(file);
    } catch (error) {
      say(`error: ${reason(error)}`);
    }
  }
  if (removed.length > 0) sync(folder);
  if (found.length === 0) await print(`No keys found in ${folder}`);
  if (removed.length > 0) await print(['Removed:', ...removed].join('\n  '));
  const signing = pairOf(args, 'signing').privateFile;
  if (!args.has('signing') && !args.has('quiet') && exists(signing))
    say(`${signing} is left; clean --signing destroys it`);
  return removed.length === found.length ? 0 : 1;
}

// ## Main

const COMMANDS: Record<
  string,
  { run: (args: Args) => Promise<number | void>; options: readonly Name[]; operand?: true }
> = {
  generate: { run: generate, options: ['alg', 'bits', 'force', 'signing'] },
  k8s: { run: k8s, options: ['namespace', 'secret-name', 'from', 'ephemeral', 'show', 'force'] },
  public: { run: publicKeys, options: ['all'], operand: true },
  token: { run: token, options: ['key', 'url', 'claim', 'claims', 'ttl', 'sign', 'issuer', 'audience'] },
  clean: { run: clean, options: ['signing'] },
};

declare const VERSION: string | undefined; // put in by scripts/build.js

async function main([first, ...rest]: readonly string[]): Promise<number> {
  const command = first !== undefined && Object.hasOwn(COMMANDS, first) ? COMMANDS[first] : undefined;
  if (first === undefined) misuse('no command');
  if (command === undefined && !first.startsWith('-')) misuse(`unknown command '${first}'`);
  const args = command
    ? parse(rest, [...COMMON, ...command.options], command.operand ?? false)
    : parse([first, ...rest], COMMON, true);
  if (args.has('help')) await print(USAGE.trimEnd());
  else if (args.has('version')) await print(typeof VERSION === 'string' ? VERSION : 'unbuilt');
  else if (command === undefined) misuse('the command comes before its options');
  else return (await command.run(args)) ?? 0;
  return 0;
}

// A reader that has gone away is seen by print(), and nobody is left to be told about stderr.
process.stdout.on('error', () => {});
process.stderr.on('error', () => {});
try {
  process.exitCode = await main(process.argv.slice(2));
} catch (error) {
  const message = reason(error);
  if (message) say(`error: ${message}`);
  process.exitCode = error instanceof Stop ? error.status : 1;
}
