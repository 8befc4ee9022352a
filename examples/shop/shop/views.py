"""The pages of the shop."""

import time

from django.core.files.storage import default_storage
from django.http import FileResponse, Http404, HttpRequest, HttpResponse, HttpResponseBadRequest, JsonResponse
from django.shortcuts import render
from django.utils.text import get_valid_filename
from django.views.decorators.http import require_GET, require_POST

from shop.version import VERSION

LONGEST_WAIT = 60.0


@require_GET
def index(request: HttpRequest) -> HttpResponse:
    """The front page: says which version of the code made it."""
    return render(request, "shop/index.html", {"version": VERSION})


@require_GET
def health(_request: HttpRequest) -> HttpResponse:
    """The health path."""
    return JsonResponse({"status": "ok", "version": VERSION})


@require_GET
def slow(request: HttpRequest) -> HttpResponse:
    """A request that takes its time: a deploy may not cut it off."""
    try:
        seconds = float(request.GET.get("seconds", "3"))
    except ValueError:
        return HttpResponseBadRequest("seconds is a number\n")
    time.sleep(min(max(seconds, 0.0), LONGEST_WAIT))
    return HttpResponse(f"{VERSION}\n", content_type="text/plain")


@require_POST
def upload(request: HttpRequest) -> HttpResponse:
    """Store a file. Uploads outlive releases."""
    file = request.FILES.get("file")
    if file is None or not file.name:
        return HttpResponseBadRequest("send a form with the field `file`\n")
    name = default_storage.save(get_valid_filename(file.name), file)
    return JsonResponse({"name": name, "size": file.size}, status=201)


@require_GET
def media(_request: HttpRequest, name: str) -> FileResponse:
    """An upload. A real site lets its proxy serve these."""
    if not default_storage.exists(name):
        raise Http404(name)
    return FileResponse(default_storage.open(name))
