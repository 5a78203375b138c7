// A server of its own process for the suite of rotations: greets the user of a token. Its key file is
// MCP_KEY_FILE_PATH.
import { createServer } from 'node:http';
import type { AddressInfo } from 'node:net';
import { getUser, withAuth } from 'mcp-auth-middleware';

const server = createServer(withAuth((_, res) => res.end(getUser().sub)));
server.listen(0, '127.0.0.1', () => {
  const { port } = server.address() as AddressInfo;
  console.log(port);
});
