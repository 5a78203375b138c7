// examples/browser.html in a real browser: a page of one origin, an MCP server of another, WebCrypto between them.
import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import type { RequestListener } from 'node:http';
import { join } from 'node:path';
import { after, before, describe, it, type TestContext } from 'node:test';
import { toNodeHandler } from '@modelcontextprotocol/node';
import { createMcpHandler, McpServer } from '@modelcontextprotocol/server';
import { type AuthOptions, getUser, withAuth } from 'mcp-auth-middleware';
import { type Browser, chromium } from 'playwright-core';
import { findProgram, keyPair, root, serve } from './support/support.js';

const program = findProgram('chromium') ?? findProgram('google-chrome');
const skip = program || process.env.CI ? false : 'chromium is not installed';

const html = readFileSync(join(root, 'examples/browser.html'));
const page: RequestListener = (_req, res) => void res.writeHead(200, { 'Content-Type': 'text/html' }).end(html);

const whoami = toNodeHandler(
  createMcpHandler(() => {
    const mcp = new McpServer({ name: 'hello', version: '1.0.0' });
    mcp.registerTool('whoami', {}, () => ({ content: [{ type: 'text', text: `Hello, ${getUser().name}!` }] }));
    return mcp;
  }),
);

describe('examples/browser.html', { skip }, () => {
  let browser: Browser;
  before(async () => {
    browser = await chromium.launch({
      executablePath: program ?? 'chromium', // in CI: fails, saying so
      args: [
        '--headless',
        '--no-sandbox',
        '--disable-gpu',
        '--disable-quic',
        '--no-first-run',
        '--disable-background-networking',
        '--disable-component-update',
        '--disable-sync',
      ],
    });
  });
  after(() => browser?.close());

  /** Opens the page, has it ask the server, and returns what it shows with the requests that reached the server. */
  async function ask(
    t: TestContext,
    name: string,
    options: (pageOrigin: string) => AuthOptions,
  ): Promise<{ shown: string; requests: string[]; calls: number }> {
    const { url: pageOrigin } = await serve(t, page);
    const { privateJwk } = await keyPair();
    const requests: string[] = [];
    let calls = 0;
    const handler = withAuth(
      (req, res) => {
        calls += 1;
        return whoami(req, res);
      },
      { keys: { keys: [privateJwk] }, ...options(pageOrigin) },
    );
    const { url } = await serve(t, (req, res) => {
      requests.push(`${req.method} ${req.url}`);
      handler(req, res);
    });

    const context = await browser.newContext();
    t.after(() => context.close());
    const tab = await context.newPage();
    tab.setDefaultTimeout(20_000);
    const elsewhere: string[] = [];
    tab.on('request', (request) => {
      const { origin } = new URL(request.url());
      if (origin !== pageOrigin && origin !== url) elsewhere.push(request.url());
    });
    await tab.goto(pageOrigin);
    await tab.getByLabel('MCP server').fill(`${url}/mcp`);
    await tab.getByLabel('Your name').fill(name);
    await tab.getByRole('button').click();
    const shown = await tab.locator('output', { hasText: /./ }).textContent();
    assert.deepEqual(elsewhere, [], 'asks nobody else');
    return { shown: shown ?? '', requests, calls };
  }

  const exchange = ['GET /.well-known/jwks.json', 'OPTIONS /mcp', 'POST /mcp'];
  for (const name of ['Ada', 'Zoë 李 🎓 <b>&"\\']) {
    it(`is greeted as ${name} by a server that allows its origin`, async (t) => {
      const { shown, requests, calls } = await ask(t, name, (origin) => ({ cors: { origin: [origin] } }));
      assert.deepEqual({ shown, requests, calls }, { shown: `Hello, ${name}!`, requests: exchange, calls: 1 });
    });
  }

  it('is greeted by a server that allows every origin', async (t) => {
    const { shown, calls } = await ask(t, 'Ada', () => ({ cors: { origin: '*' } }));
    assert.deepEqual({ shown, calls }, { shown: 'Hello, Ada!', calls: 1 });
  });

  it('can read why it is refused', async (t) => {
    const { shown, requests, calls } = await ask(t, 'Ada', (origin) => ({
      cors: { origin: [origin] },
      requiredClaims: ['email'],
    }));
    assert.match(shown, /^Failed: HTTP 403, Bearer error="insufficient_scope".* scope="email"/);
    assert.deepEqual({ requests, calls }, { requests: exchange, calls: 0 });
  });

  const closed: [what: string, options: AuthOptions][] = [
    ['no cors option', {}],
    ['another origin in its list', { cors: { origin: ['https://app.example'] } }],
  ];
  for (const [what, options] of closed) {
    it(`reads the key of a server with ${what} and gets no further than the preflight`, async (t) => {
      const { shown, requests, calls } = await ask(t, 'Ada', () => options);
      assert.match(shown, /^Failed: Failed to fetch/);
      assert.deepEqual({ requests, calls }, { requests: exchange.slice(0, 2), calls: 0 });
    });
  }
});
