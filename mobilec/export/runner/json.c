// JSON, written by hand: the programs that read it are far away.
#include "runner.h"

#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static char *text;
static size_t used, room;

static void reserve(size_t more) {
    if (used + more <= room)
        return;
    size_t wanted = (used + more) * 2 + 4096;
    char *grown = realloc(text, wanted);
    if (!grown) {
        static const char message[] = "{\"error\": {\"kind\": \"BackendError\", \"message\": \"no memory for the answer\", "
                                      "\"hint\": \"\", \"detail\": \"\"}}\n";
        (void)!write(1, message, sizeof message - 1);
        _exit(1);
    }
    text = grown;
    room = wanted;
}

void json_raw(const char *format, ...) {
    va_list arguments, again;
    va_start(arguments, format);
    va_copy(again, arguments);
    int length = vsnprintf(NULL, 0, format, arguments);
    reserve((size_t)length + 1);
    vsnprintf(text + used, (size_t)length + 1, format, again);
    used += (size_t)length;
    va_end(again);
    va_end(arguments);
}

void json_string(const char *from) {
    reserve(strlen(from) * 6 + 3);
    text[used++] = '"';
    for (const unsigned char *c = (const unsigned char *)from; *c; c++) {
        if (*c == '"' || *c == '\\') {
            text[used++] = '\\';
            text[used++] = (char)*c;
        } else if (*c < 32 || *c > 126) { // what the system's files hold need not be UTF-8
            used += (size_t)snprintf(text + used, 7, "\\u%04x", *c);
        } else {
            text[used++] = (char)*c;
        }
    }
    text[used++] = '"';
}

void json_base64(const void *data, uint64_t bytes) {
    static const char digits[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    const unsigned char *from = data;
    reserve((size_t)bytes / 3 * 4 + 8);
    text[used++] = '"';
    for (uint64_t at = 0; at < bytes; at += 3) {
        uint64_t left = bytes - at;
        uint32_t group = (uint32_t)from[at] << 16;
        group |= left > 1 ? (uint32_t)from[at + 1] << 8 : 0;
        group |= left > 2 ? (uint32_t)from[at + 2] : 0;
        text[used++] = digits[group >> 18];
        text[used++] = digits[group >> 12 & 63];
        text[used++] = left > 1 ? digits[group >> 6 & 63] : '=';
        text[used++] = left > 2 ? digits[group & 63] : '=';
    }
    text[used++] = '"';
}

void json_number(double value) {
    if (isfinite(value))
        json_raw("%.9g", value);
    else
        json_raw("null");
}

void json_forget(void) { used = 0; }

bool json_flush(void) {
    reserve(1);
    text[used++] = '\n';
    for (size_t done = 0; done < used;) {
        ssize_t wrote = write(1, text + done, used - done);
        if (wrote <= 0)
            return false; // whoever listened is gone
        done += (size_t)wrote;
    }
    used = 0;
    return true;
}
