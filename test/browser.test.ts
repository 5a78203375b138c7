// examples/browser.html in a real browser: a page of one origin, an MCP server of another, WebCrypto between them.
// SCREENSHOTS=DIR keeps what it looked like.
import assert from 'node:assert/strict';
import { createHash, generateKeyPairSync } from 'node:crypto';
import { readFileSync } from 'node:fs';
import type { RequestListener } from 'node:http';
import { createRequire } from 'node:module';
import { join } from 'node:path';
import { after, before, describe, it, type TestContext } from 'node:test';
import { toNodeHandler } from '@modelcontextprotocol/node';
import { createMcpHandler, McpServer } from '@modelcontextprotocol/server';
import type { AxeResults } from 'axe-core';
import { type AuthOptions, getUser, withAuth } from 'mcp-auth-middleware';
import type { Browser, BrowserContextOptions, Page } from 'playwright-core';
import { launchChromium, needsChromium } from './support/chromium.js';
import { keyFile, startExample } from './support/example.js';
import { keyPair, root, serve } from './support/support.js';

const file = join(root, 'examples/browser.html');
const html = readFileSync(file, 'utf8');
const axe = readFileSync(createRequire(import.meta.url).resolve('axe-core/axe.min.js'), 'utf8');

/** The strictest policy under which the page can work: its own script, its own style and calls to other origins. */
const hashes = [...html.matchAll(/<(script|style)(?: type="module")?>(.*?)<\/\1>/gs)].map(
  ([, tag, source = '']) => `${tag}-src 'sha256-${createHash('sha256').update(source).digest('base64')}'`,
);
const policy = ["default-src 'none'", 'connect-src http:', "base-uri 'none'", "form-action 'none'", ...hashes].join(
  '; ',
);
const page: RequestListener = (_req, res) =>
  void res.writeHead(200, { 'Content-Type': 'text/html', 'Content-Security-Policy': policy }).end(html);

/** A server that says the same to everybody. */
const answering =
  (status: number, body = '', headers: Record<string, string> = {}): RequestListener =>
  (_req, res) =>
    void res.writeHead(status, { 'Access-Control-Allow-Origin': '*', ...headers }).end(body);

/** An MCP server whose one tool answers with what `answer` gives. */
function mcpServer(tool: string, answer: () => string): RequestListener {
  return toNodeHandler(
    createMcpHandler(() => {
      const mcp = new McpServer({ name: 'hello', version: '1.0.0' });
      mcp.registerTool(tool, {}, () => ({ content: [{ type: 'text', text: answer() }] }));
      return mcp;
    }),
  );
}
const whoami = mcpServer('whoami', () => `Hello, ${getUser().name}!`);

interface Step {
  state: string | undefined;
  text: string;
}

const plans: Step[] = [...html.matchAll(/<h2>.*?<\/h2>\s*<p>(.*?)<\/p>/gs)].map(([, text = '']) => ({
  state: undefined,
  text,
}));

/** What the list of steps shows. */
const steps = (tab: Page): Promise<Step[]> =>
  tab
    .locator('li')
    .evaluateAll((items) =>
      items.map((item) => ({ state: item.dataset.state || undefined, text: item.lastElementChild?.textContent ?? '' })),
    );

describe('examples/browser.html', needsChromium, () => {
  let browser: Browser;
  before(async () => {
    browser = await launchChromium();
  });
  after(() => browser?.close());

  /** Opens a page whose every fault fails the test. */
  async function open(t: TestContext, url: string, options: BrowserContextOptions = {}): Promise<Page> {
    const context = await browser.newContext(options);
    const tab = await context.newPage();
    tab.setDefaultTimeout(60_000);
    const faults: string[] = [];
    tab.on('pageerror', (error) => faults.push(String(error)));
    tab.on('console', (message) => {
      if (message.text().includes('Content Security Policy')) faults.push(message.text());
    });
    t.after(async () => {
      await context.close();
      assert.deepEqual(faults, []);
    });
    await tab.goto(url);
    return tab;
  }

  /** The page alone on an origin of its own. */
  async function openPage(t: TestContext, options?: BrowserContextOptions): Promise<Page> {
    return open(t, (await serve(t, page)).url, options);
  }

  /** Fills the form in, sends it and returns the steps once the last one that was begun has ended. */
  async function ask(tab: Page, server: string, name = 'Ada'): Promise<Step[]> {
    await tab.getByLabel('MCP server').fill(server);
    await tab.getByLabel('Your name').fill(name);
    await tab.getByRole('button').click();
    await tab.locator('#answer[data-state=done], [data-state=failed]').waitFor();
    return steps(tab);
  }

  interface Asked {
    shown: Step[];
    requests: string[];
    /** How often the handler ran. */
    calls: number;
    pageOrigin: string;
    url: string;
    tab: Page;
  }

  /** The page of one origin asks the server of another, which is set up with these options. */
  async function askServer(
    t: TestContext,
    options: (pageOrigin: string) => AuthOptions,
    { name = 'Ada', path = '/mcp', handler = whoami } = {},
  ): Promise<Asked> {
    const { url: pageOrigin } = await serve(t, page);
    const { privateJwk } = await keyPair();
    const asked = { requests: [] as string[], calls: 0 };
    const listener = withAuth(
      (req, res) => {
        asked.calls += 1;
        if (req.url === '/mcp') handler(req, res);
        else res.writeHead(404).end();
      },
      { keys: { keys: [privateJwk] }, ...options(pageOrigin) },
    );
    const { url } = await serve(t, (req, res) => {
      asked.requests.push(`${req.method} ${req.url}`);
      listener(req, res);
    });
    const tab = await open(t, pageOrigin);
    const elsewhere: string[] = [];
    tab.on('request', (request) => {
      if (new URL(request.url()).origin !== url) elsewhere.push(request.url());
    });
    const shown = await ask(tab, `${url}${path}`, name);
    assert.deepEqual(elsewhere, [], 'asks nobody else');
    return { shown, ...asked, pageOrigin, url, tab };
  }

  const exchange = ['GET /.well-known/jwks.json', 'OPTIONS /mcp', 'POST /mcp'];
  const allow = (origin: string): AuthOptions => ({ cors: { origin: [origin] } });
  const done = (text: string): Step => ({ state: 'done', text });
  const failed = (text: string): Step => ({ state: 'failed', text: `Failed: ${text}` });

  it('says what it will do before it does anything', async (t) => {
    const { url } = await serve(t, page);
    const tab = await open(t, url);
    assert.equal(plans.length, 4);
    assert.deepEqual(await steps(tab), plans);
    assert.equal(await tab.getByLabel('MCP server').inputValue(), `${url}/mcp`);
  });

  for (const name of ['Ada', 'Zoë 李 🎓 <b>&"\\']) {
    it(`shows the way of a token for ${name}, to a server that allows its origin`, async (t) => {
      const { shown, requests, calls, url } = await askServer(t, allow, { name });
      const [key, token, ...rest] = shown;
      const { publicJwk } = await keyPair();
      assert.deepEqual(key, done(`RSA-OAEP-256, kid ${publicJwk.kid}`));
      const [claims, shortened] = token?.text.split('\n') ?? [];
      assert.equal(claims, JSON.stringify({ name }));
      assert.match(shortened ?? '', /^eyJ[\w-]{13}…[\w-]{8} \(\d{3} characters, good for five minutes\)$/);
      assert.deepEqual(rest, [done(`POST ${url}/mcp was answered with HTTP 200.`), done(`Hello, ${name}!`)]);
      assert.deepEqual({ requests, calls }, { requests: exchange, calls: 1 });
    });
  }

  it('is greeted by a server that allows every origin', async (t) => {
    const { shown, calls } = await askServer(t, () => ({ cors: { origin: '*' } }));
    assert.deepEqual([shown[3], calls], [done('Hello, Ada!'), 1]);
  });

  it('encrypts for a key that says RSA-OAEP as well', async (t) => {
    const { privateJwk } = await keyPair('sha1', 'RSA-OAEP');
    const { shown } = await askServer(t, (origin) => ({ ...allow(origin), keys: { keys: [privateJwk] } }));
    assert.deepEqual([shown[0], shown[3]], [done(`RSA-OAEP, kid ${privateJwk.kid}`), done('Hello, Ada!')]);
  });

  it('takes the new key of a server that has changed it', async (t) => {
    const { url: pageOrigin } = await serve(t, page);
    const [one, other] = [await keyPair(), await keyPair('other')].map(({ privateJwk }) =>
      withAuth(whoami, { keys: privateJwk, ...allow(pageOrigin) }),
    );
    let listener = one;
    const { url } = await serve(t, (req, res) => listener?.(req, res));
    const tab = await open(t, pageOrigin);
    assert.deepEqual((await ask(tab, `${url}/mcp`))[3], done('Hello, Ada!'));
    listener = other;
    assert.deepEqual((await ask(tab, `${url}/mcp`, 'Bob'))[3], done('Hello, Bob!'));
  });

  it('says which claim is missing, and is greeted when it is filled in', async (t) => {
    const { shown, requests, calls, tab } = await askServer(t, (origin) => ({
      ...allow(origin),
      requiredClaims: ['email'],
    }));
    assert.deepEqual(
      shown[3],
      failed(
        'The access token lacks a required claim or scope (HTTP 403). ' +
          'Missing: email. Fill it in above, or add a field to this page.',
      ),
    );
    assert.deepEqual({ requests, calls }, { requests: exchange, calls: 0 });
    await tab.getByLabel('Your email').fill('ada@example.com');
    await tab.getByRole('button').click();
    await tab.locator('#answer[data-state=done]').waitFor();
    assert.deepEqual((await steps(tab))[3], done('Hello, Ada!'));
  });

  describe('when the key cannot be fetched', () => {
    it('without a server it asks whether one runs', async (t) => {
      const { url, server } = await serve(t, page);
      server.close();
      const shown = await ask(await openPage(t), `${url}/mcp`);
      const advice = 'Does the server run, is this its address, and does it not redirect?';
      const expected = failed(`no answer from ${url}/.well-known/jwks.json. ${advice}`);
      assert.deepEqual(shown, [expected, ...plans.slice(1)]);
    });

    it('waits ten seconds for a server that hangs', async (t) => {
      const { url } = await serve(t, () => {});
      const [key] = await ask(await openPage(t), `${url}/mcp`);
      assert.deepEqual(key, failed(`no answer from ${url}/.well-known/jwks.json within ten seconds.`));
    });

    it('follows no redirect: whoever answers there could give another key', async (t) => {
      let asked = 0;
      const other = await serve(t, (req, res) => {
        asked += 1;
        answering(200, '{"keys":[]}')(req, res);
      });
      const { url } = await serve(t, answering(307, '', { Location: other.url }));
      const [key] = await ask(await openPage(t), `${url}/mcp`);
      assert.match(key?.text ?? '', /^Failed: no answer from .* does it not redirect\?$/);
      assert.equal(asked, 0);
    });

    const answers: [what: string, status: number, body: string, advice: RegExp][] = [
      ['another server', 404, 'Not found', /^Failed: no key at \S+ \(HTTP 404\)\. Is mcp-auth-middleware at the root/],
      ['no JSON', 200, '<html>', /^Failed: no key at \S+ \(HTTP 200\)/],
      ['no key set', 200, 'null', /^Failed: no key at \S+ \(HTTP 200\)/],
      ['a set without a key', 200, '{"keys":[]}', /^Failed: no key at \S+ \(HTTP 200\)/],
    ];
    for (const [what, status, body, advice] of answers) {
      it(`says what to do about ${what}`, async (t) => {
        const { url } = await serve(t, answering(status, body));
        const shown = await ask(await openPage(t), `${url}/mcp`);
        assert.match(shown[0]?.text ?? '', advice);
        assert.deepEqual(shown.slice(1), plans.slice(1));
      });
    }

    it('says that the keys of a server have expired', async (t) => {
      const { privateJwk } = await keyPair();
      let now = Math.floor(Date.now() / 1000);
      const { url } = await serve(t, withAuth(whoami, { keys: { ...privateJwk, exp: now + 60 }, now: () => now }));
      now += 3600;
      const [key] = await ask(await openPage(t), `${url}/mcp`);
      assert.deepEqual(key, failed('the server has no valid key now. Whoever runs it should rotate its keys.'));
    });

    it('asks for https, except on this machine', async (t) => {
      const [key] = await ask(await openPage(t), 'http://mcp.example/mcp');
      assert.deepEqual(key, failed('use https. Whoever swaps the key on its way can read your claims.'));
    });

    it('says that an insecure page has no WebCrypto', async (t) => {
      const { port, url } = await serve(t, page);
      const [key] = await ask(await open(t, `http://page.example:${port}/`), `${url}/mcp`);
      assert.deepEqual(key, failed('WebCrypto is missing. Open this page over https or from localhost.'));
    });
  });

  it('says that it does not know the algorithm of a key', async (t) => {
    const body = JSON.stringify({ keys: [{ ...(await keyPair()).publicJwk, alg: 'RSA-OAEP-512' }] });
    const { url } = await serve(t, answering(200, body));
    const shown = await ask(await openPage(t), `${url}/mcp`);
    const advice = 'this page does not know RSA-OAEP-512. Make the server a key for RSA-OAEP-256.';
    assert.deepEqual(shown.slice(1), [failed(advice), ...plans.slice(2)]);
  });

  const closed: [what: string, options: AuthOptions][] = [
    ['no cors option', {}],
    ['another origin in its list', { cors: { origin: ['https://app.example'] } }],
  ];
  for (const [what, options] of closed) {
    it(`reads the key of a server with ${what}, gets no further than the preflight and says what to set`, async (t) => {
      const { shown, requests, calls, pageOrigin } = await askServer(t, () => options);
      const advice = 'the server does not let this page call it, or has stopped. Add to its options';
      assert.deepEqual(shown[2], failed(`${advice}\ncors: { origin: ['${pageOrigin}'] }`));
      assert.deepEqual(shown[3], plans[3]);
      assert.deepEqual({ requests, calls }, { requests: exchange.slice(0, 2), calls: 0 });
    });
  }

  const issuerKey = { alg: 'Ed25519', ...generateKeyPairSync('ed25519').publicKey.export({ format: 'jwk' }) };
  const clock = (offset: number) => () => Date.now() / 1000 + offset;
  const again = 'Ask again. If that does not help,';
  const refusals: [what: string, options: AuthOptions, answer: string][] = [
    [
      'a token that has expired by the clock of the server',
      { now: clock(3600) },
      `The access token has expired (HTTP 401). ${again} the clock of this device or of the server is wrong.`,
    ],
    [
      'a token from the future',
      { now: clock(-3600) },
      `The access token is not valid yet (HTTP 401). ${again} the clock of this device or of the server is wrong.`,
    ],
    [
      'a server that wants claims to be signed',
      {
        audience: 'x',
        trustedIssuers: [{ issuer: 'https://idp.example', jwks: { keys: [{ kty: 'OKP', ...issuerKey }] } }],
      },
      `The access token is invalid (HTTP 401). ${again} this server wants another kind of token.`,
    ],
    [
      'a server that cannot ask whether the token was revoked',
      { isRevoked: () => Promise.reject(new Error('the list is away')) },
      'It is unknown whether the token was revoked; try again (HTTP 503). Ask again in 1 s.',
    ],
    [
      'a missing scope',
      { requiredScopes: ['notes:read'] },
      'The access token lacks a required claim or scope (HTTP 403). ' +
        'Missing: notes:read. Fill it in above, or add a field to this page.',
    ],
  ];
  for (const [what, options, answer] of refusals) {
    it(`says what to do about ${what}`, async (t) => {
      const { shown, requests, calls, url } = await askServer(t, (origin) => ({ ...allow(origin), ...options }));
      assert.deepEqual(shown[3], failed(answer));
      const status = /HTTP \d+/.exec(answer)?.[0];
      assert.deepEqual(shown[2], done(`POST ${url}/mcp was answered with ${status}.`));
      assert.deepEqual({ requests, calls }, { requests: exchange, calls: 0 });
    });
  }

  const answers: [what: string, setup: { path?: string; handler?: RequestListener }, answer: RegExp][] = [
    ['a wrong path', { path: '/' }, /^Failed: no answer of an MCP server \(HTTP 404\)\. .* often ends in \/mcp\.$/],
    [
      'a server without whoami',
      { handler: mcpServer('greet', () => '') },
      /^Failed: .*whoami.* \(HTTP 200\)\. The log/,
    ],
    [
      'a tool that fails',
      {
        handler: mcpServer('whoami', () => {
          throw new Error('the database is away');
        }),
      },
      /^Failed: the database is away \(HTTP 200\)\. The log of the server may say more\.$/,
    ],
    [
      'an answer that is not MCP',
      { handler: (_req, res) => void res.end('hello') },
      /^Failed: no answer of an MCP server/,
    ],
  ];
  for (const [what, setup, answer] of answers) {
    it(`says what to do about ${what}`, async (t) => {
      const { shown } = await askServer(t, allow, setup);
      assert.equal(shown[3]?.state, 'failed');
      assert.match(shown[3]?.text ?? '', answer);
    });
  }

  describe('served by examples/server.ts', () => {
    it('needs no setting to call the server it came from', async (t) => {
      const { url } = await startExample(t, 'server.js', { MCP_KEY_FILE_PATH: await keyFile(t), PAGE: file });
      const tab = await open(t, new URL('/', url).href);
      assert.equal(await tab.getByLabel('MCP server').inputValue(), url);
      assert.deepEqual((await ask(tab, url))[3], done('Hello, Ada!'));
    });

    it('may stand elsewhere when CORS_ORIGIN names its origin', async (t) => {
      const { url: pageOrigin } = await serve(t, page);
      const env = { MCP_KEY_FILE_PATH: await keyFile(t), CORS_ORIGIN: pageOrigin };
      const { url } = await startExample(t, 'server.js', env);
      assert.deepEqual((await ask(await open(t, pageOrigin), url))[3], done('Hello, Ada!'));
    });
  });

  describe('for everybody', () => {
    it('works with the keyboard alone', async (t) => {
      const { privateJwk } = await keyPair();
      const { url } = await serve(t, withAuth(whoami, { keys: privateJwk, cors: { origin: '*' } }));
      const tab = await openPage(t);
      const focused: (string | null)[] = [];
      for (let i = 0; i < 4; i += 1) {
        await tab.keyboard.press('Tab');
        const { name, outline } = await tab.evaluate(() => {
          const element = document.activeElement;
          if (!element) return { name: null, outline: '' };
          return {
            name: element.getAttribute('name') ?? element.tagName,
            outline: getComputedStyle(element).outlineStyle,
          };
        });
        focused.push(name);
        assert.equal(outline, 'solid', 'one can see where one is');
        if (name === 'server') await tab.keyboard.type(`${url}/mcp`); // Tab selects what stands in a field
      }
      assert.deepEqual(focused, ['server', 'name', 'email', 'BUTTON']);
      await tab.keyboard.press('Enter');
      await tab.locator('#answer[data-state=done]').waitFor();
      assert.deepEqual((await steps(tab))[3], done('Hello, Ada!'));
    });

    /** No horizontal scrolling and nothing that axe-core knows to be wrong: labels, contrasts, landmarks and more. */
    async function inspect(tab: Page, name: string): Promise<void> {
      if (process.env.SCREENSHOTS) {
        await tab.screenshot({ path: join(process.env.SCREENSHOTS, `${name}.png`), fullPage: true });
      }
      const [content, width] = await tab.evaluate(() => [document.documentElement.scrollWidth, innerWidth]);
      assert.equal(content, width, `${name} scrolls`);
      await tab.evaluate(axe);
      const { violations, passes } = await tab.evaluate<AxeResults>('axe.run()');
      assert.deepEqual(
        violations.map(({ id, nodes }) => [id, nodes.map(({ html }) => html)]),
        [],
        name,
      );
      const passed = new Set(passes.map(({ id }) => id));
      for (const rule of ['color-contrast', 'label', 'html-has-lang', 'landmark-one-main']) assert.ok(passed.has(rule));
    }

    for (const width of [390, 1280]) {
      for (const colorScheme of ['light', 'dark'] as const) {
        it(`can be read on ${width} pixels in the ${colorScheme}`, async (t) => {
          const { privateJwk } = await keyPair();
          const { url } = await serve(t, withAuth(whoami, { keys: privateJwk, cors: { origin: '*' } }));
          const viewport = { width, height: width === 390 ? 844 : 800 };
          const tab = await openPage(t, { viewport, colorScheme });
          const background = await tab.evaluate(() => getComputedStyle(document.documentElement).backgroundColor);
          assert.equal(background, colorScheme === 'light' ? 'rgb(255, 255, 255)' : 'rgb(20, 23, 26)');
          await inspect(tab, `${width}-${colorScheme}-1-start`);
          await ask(tab, `${url}/mcp`, 'Ada '.repeat(30).trim());
          await inspect(tab, `${width}-${colorScheme}-2-answer`);
          const { url: deaf } = await serve(t, withAuth(whoami, { keys: privateJwk }));
          const shown = await ask(tab, `${deaf}/mcp?${'long'.repeat(60)}`);
          assert.equal(shown[2]?.state, 'failed');
          await inspect(tab, `${width}-${colorScheme}-3-error`);
        });
      }
    }

    it('has a list of steps that a screen reader hears change', async (t) => {
      const tab = await openPage(t);
      const list = tab.getByRole('list');
      assert.equal(await list.getAttribute('aria-live'), 'polite');
      assert.equal(await list.getByRole('listitem').count(), 4);
      assert.deepEqual(await tab.getByRole('heading').allTextContents(), [
        'Tell an MCP server who you are',
        'Fetch the key',
        'Encrypt the claims',
        'Call the tool',
        'Read the answer',
      ]);
    });
  });
});
