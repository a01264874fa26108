/* The physical limit: the bytes of the gateway on the wire, by epoll, and nothing else.
 *
 *     limit echo PORT    answers requests and sends events to all connections itself
 *     limit mesh PORT    does both over RabbitMQ, whose URL is in NUROPB_GATEWAY_MESH_URL
 *
 * It speaks WebSocket, POST /rpc/SERVICE/METHOD and GET /events, to the clients of this benchmark alone. It checks no
 * token, no length and no syntax, and reads the client's JSON by position: no gateway may do the same. */

#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <unistd.h>

enum { FILES = 65536, ROOM = 1 << 18 };
enum kind { HTTP, WEBSOCKET, STREAM };

/* By file descriptor: protocol, bytes of a message that is not complete, and the token. */
static struct { enum kind kind; char *rest, *token; size_t size; } clients[FILES];
static int audience[FILES], listeners, epoll, broker = -1;
/* Bytes for one connection, written when those of another follow, and at the end of a turn. */
static char outgoing[ROOM], publishes[4 * ROOM];
static size_t waiting, published;
static int receiver = -1;
/* The name of this process's queue, with its length before it. */
static char queue[] = "\x0blimit-00000";

static void transmit(int file, const char *data, size_t size) {
    while (size) {
        ssize_t sent = send(file, data, size, MSG_NOSIGNAL);
        if (sent < 0 && errno != EAGAIN) return; /* the client has gone */
        if (sent < 0) poll(&(struct pollfd){file, POLLOUT, 0}, 1, -1);
        else data += sent, size -= sent;
    }
}

static void flush(void) {
    if (waiting) transmit(receiver, outgoing, waiting);
    waiting = 0;
}

static void put(int file, const char *data, size_t size) {
    if (file != receiver || waiting + size > ROOM) flush();
    receiver = file;
    memcpy(outgoing + waiting, data, size), waiting += size;
}

/* Send a JSON text in the way of the connection: as a frame, an event or a response. */
static void say(int file, const char *text, size_t size) {
    char head[128];
    if (clients[file].kind == WEBSOCKET) {
        unsigned char frame[4] = {0x81, size < 126 ? size : 126, size >> 8, size};
        put(file, (char *)frame, size < 126 ? 2 : 4), put(file, text, size);
    } else if (clients[file].kind == STREAM) {
        put(file, head, sprintf(head, "%zx\r\nid: 1\ndata: ", size + 14)), put(file, text, size), put(file, "\n\n\r\n", 4);
    } else {
        put(file, head, sprintf(head, "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %zu\r\n\r\n", size));
        put(file, text, size);
    }
}

static void answer(int file, const char *id, int id_size, const char *result, int size) {
    static char text[ROOM];
    if (clients[file].kind == HTTP) say(file, result, size);
    else say(file, text, sprintf(text, "{\"type\":\"response\",\"payload\":{\"id\":\"%.*s\",\"trace_id\":\"%.*s\",\"result\":%.*s,"
                                 "\"error\":null}}", id_size, id, id_size, id, size, result));
}

static void deliver(const char *event, int size) {
    static char text[ROOM / 2];
    int length = sprintf(text, "{\"topic\":\"bench.limit%s\",\"event\":%.*s}", broker < 0 ? "" : "-mesh", size, event), whole;
    static char frame[ROOM];
    whole = sprintf(frame, "{\"type\":\"event\",\"payload\":%s}", text);
    for (int each = 0; each < listeners; each++)
        if (clients[audience[each]].kind == WEBSOCKET) say(audience[each], frame, whole);
        else say(audience[each], text, length);
}

/* Make a call: here, or by a message to the service, with file descriptor and id in its correlation id. */
static void call(int file, const char *method, int method_size, const char *params, int size, const char *id, int id_size) {
    int publish = method_size == 7;
    if (broker < 0) {
        char *event = publish ? memmem(params, size, "\"event\": ", 9) + 9 : NULL;
        answer(file, id, id_size, publish ? "null" : params, publish ? 4 : size);
        if (publish) deliver(event, params + size - 1 - event);
        return;
    }
    static char body[ROOM], correlation[64];
    static const char method_frame[] = "\0\x3c\0\x28\0\0\x13nuropb-rpc-exchange\x05" "bench\0";
    static const char table[] = "\x10" "application/json\0\0\0\x64\x09" "encryptedS\0\0\0\0\x0fnuropb_protocolS\0\0\0\x05" "0.1.1"
        "\x0bnuropb_typeS\0\0\0\x07request\x0enuropb_versionS\0\0\0\x05" "0.1.8\x08trace_idV";
    int length = sprintf(body, "{\"tag\":\"request\",\"service\":\"bench\",\"method\":\"%.*s\",\"params\":%.*s,\"reply_to\":\"%s\","
        "\"context\":{\"user_id\":\"user\",\"Authorization\":\"%s\",\"trace_id\":\"%.*s\",\"session_id\":\"%032d\"},\"trace_id\":\"%.*s\"}",
        method_size, method, size, params, queue + 1, clients[file].token ? clients[file].token : "", id_size, id, file, id_size, id);
    int name = sprintf(correlation, "%d:%.*s", file, id_size, id);
    char *to = publishes + published, *start = to;
    uint32_t header = htonl(14 + sizeof table - 1 + 1 + name + sizeof queue - 1), bytes = htonl(length), fixed = htonl(sizeof method_frame - 1);
    *to++ = 1, *to++ = 0, *to++ = 1, memcpy(to, &fixed, 4), to += 4;
    memcpy(to, method_frame, sizeof method_frame - 1), to += sizeof method_frame - 1, *to++ = (char)0xce;
    *to++ = 2, *to++ = 0, *to++ = 1, memcpy(to, &header, 4), to += 4;
    memcpy(to, "\0\x3c\0\0\0\0\0\0", 8), memcpy(to + 8, &bytes, 4), memcpy(to + 12, "\xa6\0", 2), to += 14;
    memcpy(to, table, sizeof table - 1), to += sizeof table - 1;
    *to++ = (char)name, memcpy(to, correlation, name), to += name, memcpy(to, queue, sizeof queue - 1), to += sizeof queue - 1, *to++ = (char)0xce;
    *to++ = 3, *to++ = 0, *to++ = 1, memcpy(to, &bytes, 4), to += 4, memcpy(to, body, length), to += length, *to++ = (char)0xce;
    published += to - start;
}

/* --- clients ------------------------------------------------------------------------------------------------------ */

static uint32_t turned(uint32_t word, int bits) { return word << bits | word >> (32 - bits); }

/* Compute the Sec-WebSocket-Accept of a key of 24 characters: SHA-1 in base64 (RFC 6455, 4.2.2). */
static void accept_key(const char *key, char *accept) {
    unsigned char block[128] = {0}, digest[21] = {0};
    uint32_t state[5] = {0x67452301, 0xefcdab89, 0x98badcfe, 0x10325476, 0xc3d2e1f0}, words[80];
    memcpy(block, key, 24), memcpy(block + 24, "258EAFA5-E914-47DA-95CA-C5AB0DC85B11", 36), block[60] = 0x80;
    block[126] = 60 * 8 >> 8, block[127] = (60 * 8) & 255;
    for (int part = 0; part < 2; part++) {
        uint32_t a = state[0], b = state[1], c = state[2], d = state[3], e = state[4];
        for (int i = 0; i < 80; i++) {
            if (i < 16) memcpy(&words[i], block + 64 * part + 4 * i, 4), words[i] = ntohl(words[i]);
            else words[i] = turned(words[i - 3] ^ words[i - 8] ^ words[i - 14] ^ words[i - 16], 1);
            uint32_t f = i < 20 ? (b & c) | (~b & d) : i < 40 || i >= 60 ? b ^ c ^ d : (b & c) | (b & d) | (c & d);
            uint32_t k = i < 20 ? 0x5a827999 : i < 40 ? 0x6ed9eba1 : i < 60 ? 0x8f1bbcdc : 0xca62c1d6;
            uint32_t next = turned(a, 5) + f + e + k + words[i];
            e = d, d = c, c = turned(b, 30), b = a, a = next;
        }
        state[0] += a, state[1] += b, state[2] += c, state[3] += d, state[4] += e;
    }
    for (int i = 0; i < 20; i++) digest[i] = state[i / 4] >> (24 - 8 * (i % 4));
    for (int i = 0; i < 28; i++) {
        int bit = 6 * i, pair = digest[bit / 8] << 8 | (bit / 8 < 20 ? digest[bit / 8 + 1] : 0);
        accept[i] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"[pair >> (10 - bit % 8) & 63];
    }
    accept[27] = '=';
}

static void open_connection(int file, const char *key) {
    static char text[1024];
    char accept[29] = {0};
    int hello = sprintf(text, "{\"topic\":\"hello\",\"event\":{\"session_id\":\"%032d\",\"user_id\":\"user-1\",\"username\":\"user-1\","
        "\"protocol\":\"nuropb.v1\",\"instance_id\":\"%032d\",\"expires_at\":1800000000,\"limits\":{\"max_message_size\":65536,"
        "\"max_in_flight\":64,\"request_timeout\":30,\"ping_interval\":20}}}", file, file);
    static char head[256], frame[1100];
    if (key) {
        accept_key(key, accept);
        put(file, head, sprintf(head, "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                                "Sec-WebSocket-Accept: %s\r\n\r\n", accept));
        clients[file].kind = WEBSOCKET;
        say(file, frame, sprintf(frame, "{\"type\":\"event\",\"payload\":%s}", text));
    } else {
        put(file, head, sprintf(head, "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"));
        clients[file].kind = STREAM, audience[listeners++] = file;
        say(file, text, hello);
    }
}

/* Handle one request or frame; return its bytes, or 0 if it is not complete. */
static size_t take(int file, char *data, size_t size) {
    if (clients[file].kind != WEBSOCKET) {
        char *end = memmem(data, size, "\r\n\r\n", 4), *found;
        if (!end) return 0;
        size_t head = end + 4 - data, body = 0;
        *end = 0;
        if ((found = strcasestr(data, "\r\ncontent-length: "))) body = atoi(found + 18);
        if (head + body > size) return *end = '\r', 0;
        if (!clients[file].token && (found = strcasestr(data, "\r\nauthorization: ")))
            clients[file].token = strndup(found + 17, strcspn(found + 17, "\r"));
        if (!strncmp(data, "POST ", 5)) {
            char *method = memchr(data + 10, '/', head) + 1;
            call(file, method, strcspn(method, " "), data + head, body, "http", 4);
        } else if ((found = strcasestr(data, "\r\nsec-websocket-key: "))) open_connection(file, found + 21);
        else if (!strncmp(data, "GET /events", 11)) open_connection(file, NULL);
        else say(file, "{}", 2);
        return head + body;
    }
    if (size < 6) return 0;
    size_t length = data[1] & 127, head = length == 126 ? 8 : 6;
    if (length == 126) length = (unsigned char)data[2] << 8 | (unsigned char)data[3];
    if (size < head + length) return 0;
    char *text = data + head, *mask = text - 4, *id, *params, *method;
    for (size_t i = 0; i < length; i++) text[i] ^= mask[i & 3];
    if ((data[0] & 15) == 8) return put(file, "\x88\x02\x03\xe8", 4), flush(), shutdown(file, SHUT_WR), head + length;
    if (!(id = memmem(text, length, "\"id\": \"", 7))) return head + length;
    int id_size = strcspn(id += 7, "\"");
    if (!memcmp(text, "{\"type\": \"subscribe\"", 20)) {
        audience[listeners++] = file, answer(file, id, id_size, "null", 4);
    } else if ((method = memmem(text, length, "\"method\": \"", 11)) && (params = memmem(text, length, "\"params\": ", 10))) {
        call(file, method + 11, strcspn(method + 11, "\""), params + 10, id - 9 - params - 10, id, id_size);
    }
    return head + length;
}

/* --- the broker --------------------------------------------------------------------------------------------------- */

static void take_message(char *body, int size) {
    char *end = memmem(body, size, ",\"error\":", 9), *id, *event;
    if (!memcmp(body, "{\"tag\":\"response\"", 17) && (id = memmem(end, body + size - end, "\"correlation_id\":\"", 18))) {
        char *name = strchr(id += 18, ':') + 1;
        answer(atoi(id), name, strcspn(name, "\""), body + 27, end - body - 27);
    } else if ((event = memmem(body, size, "\"event\":", 8))) {
        deliver(event + 8, (char *)memmem(event, body + size - event, ",\"context\"", 10) - event - 8);
    }
}

static size_t take_frame(int file, char *data, size_t size) {
    (void)file;
    uint32_t length;
    if (size < 8 || (memcpy(&length, data + 3, 4), length = ntohl(length), size < length + 8)) return 0;
    if (data[0] == 3) data[7 + length] = 0, take_message(data + 7, length);
    return length + 8;
}

/* Send one method of AMQP on a channel, from strings with their lengths, and read until a method answers. */
static void method(int channel, const char *payload, size_t size) {
    char frame[512] = {1, 0, channel, 0, 0, size >> 8, size}, answer[65536];
    memcpy(frame + 7, payload, size), frame[7 + size] = (char)0xce;
    transmit(broker, frame, size + 8);
    if (read(broker, answer, sizeof answer) <= 0) exit(1);
}

/* The same for a method that names the queue. */
static void queue_method(const char *before, const char *after, size_t size) {
    char payload[256];
    memcpy(payload, before, 6), memcpy(payload + 6, queue, sizeof queue - 1), memcpy(payload + 5 + sizeof queue, after, size);
    method(1, payload, 5 + sizeof queue + size);
}

#define METHOD(channel, payload) method(channel, payload, sizeof payload - 1)
#define QUEUE_METHOD(before, after) queue_method(before, after, sizeof after - 1)

static void connect_to_broker(const char *url) {
    struct sockaddr_in address = {AF_INET, htons(atoi(strrchr(url, ':') + 1)), {htonl(INADDR_LOOPBACK)}};
    char answer[65536];
    broker = socket(AF_INET, SOCK_STREAM, 0);
    if (connect(broker, (struct sockaddr *)&address, sizeof address)) exit(1);
    setsockopt(broker, IPPROTO_TCP, TCP_NODELAY, &(int){1}, sizeof(int));
    transmit(broker, "AMQP\0\0\x09\x01", 8);
    if (read(broker, answer, sizeof answer) <= 0) exit(1);
    METHOD(0, "\0\x0a\0\x0b\0\0\0\0\x05PLAIN\0\0\0\x0c\0guest\0guest\x05" "en_US");
    transmit(broker, "\x01\0\0\0\0\0\x0c\0\x0a\0\x1f\x07\xff\0\x02\0\0\0\0\xce", 20); /* 128 KiB, no heartbeats; no answer */
    METHOD(0, "\0\x0a\0\x28\x01/\0\0");
    METHOD(1, "\0\x14\0\x0a\0");
    QUEUE_METHOD("\0\x32\0\x0a\0\0", "\x0c\0\0\0\0"); /* exclusive, deleted with the connection */
    QUEUE_METHOD("\0\x32\0\x14\0\0", "\x16nuropb-events-exchange\x10" "bench.limit-mesh\0\0\0\0\0");
    QUEUE_METHOD("\0\x3c\0\x14\0\0", "\0\x02\0\0\0\0"); /* without acknowledgements */
}

/* --- the loop ----------------------------------------------------------------------------------------------------- */

static void watch(int file) { epoll_ctl(epoll, EPOLL_CTL_ADD, file, &(struct epoll_event){EPOLLIN, {.fd = file}}); }

static void receive(int file) {
    static char buffer[2 * ROOM];
    size_t kept = clients[file].size, start = 0, taken;
    if (kept) memcpy(buffer, clients[file].rest, kept), free(clients[file].rest);
    ssize_t more = recv(file, buffer + kept, ROOM, 0);
    clients[file].rest = NULL, clients[file].size = 0;
    if (more <= 0) {
        if (file == broker) exit(1);
        for (int each = 0; each < listeners; each++)
            if (audience[each] == file) audience[each] = audience[--listeners];
        free(clients[file].token), memset(&clients[file], 0, sizeof clients[file]), close(file);
        return;
    }
    size_t size = kept + more;
    while (start < size && (taken = (file == broker ? take_frame : take)(file, buffer + start, size - start)))
        start += taken;
    if (start < size) {
        clients[file].rest = malloc(clients[file].size = size - start);
        memcpy(clients[file].rest, buffer + start, size - start);
    }
}

int main(int count, char **arguments) {
    struct epoll_event events[512];
    struct sockaddr_in address = {AF_INET, htons(atoi(arguments[count - 1])), {htonl(INADDR_LOOPBACK)}};
    int server = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    epoll = epoll_create1(0);
    if (!strcmp(arguments[1], "mesh")) sprintf(queue + 7, "%05d", ntohs(address.sin_port)), connect_to_broker(getenv("NUROPB_GATEWAY_MESH_URL")), watch(broker);
    setsockopt(server, SOL_SOCKET, SO_REUSEADDR, &(int){1}, sizeof(int));
    if (bind(server, (struct sockaddr *)&address, sizeof address) || listen(server, 2048)) return 1;
    watch(server);
    for (;;) {
        int ready = epoll_wait(epoll, events, 512, -1);
        for (int each = 0; each < ready; each++) {
            if (events[each].data.fd != server) receive(events[each].data.fd);
            else for (int file; (file = accept4(server, NULL, NULL, SOCK_NONBLOCK)) >= 0; watch(file))
                setsockopt(file, IPPROTO_TCP, TCP_NODELAY, &(int){1}, sizeof(int));
        }
        flush();
        if (published) transmit(broker, publishes, published), published = 0;
    }
}
