"""Settings of the example service. What differs between machines comes from the environment."""

import os
import time
from pathlib import Path

BASE_DIR = Path(__file__).resolve().parent.parent

SECRET_KEY = os.environ["SECRET_KEY"]
DEBUG = False
ALLOWED_HOSTS = os.environ.get("ALLOWED_HOSTS", "localhost,127.0.0.1").split(",")

INSTALLED_APPS = ["shop"]
MIDDLEWARE = ["django.middleware.security.SecurityMiddleware", "django.middleware.common.CommonMiddleware"]
ROOT_URLCONF = "shop.urls"
WSGI_APPLICATION = "shop.wsgi.application"
TEMPLATES = [{"BACKEND": "django.template.backends.django.DjangoTemplates", "APP_DIRS": True}]

# The shop starts without a database. One that is written to lies in the shared volume, for a release is read-only.
SQLITE_PATH = os.environ.get("SHOP_SQLITE_PATH", "")
DATABASES = {"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": SQLITE_PATH}} if SQLITE_PATH else {}

# A path of the project that `shared` in lightship.yml turns into a link to the shared volume.
MEDIA_ROOT = BASE_DIR / "media"
MEDIA_URL = "/media/"
TIME_ZONE = "UTC"
USE_TZ = True
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"

# Stands for a big application, which takes its time to import. For tests and measurements.
time.sleep(float(os.environ.get("SHOP_IMPORT_SECONDS", "0")))
